_base_ = './common_runtime.py'

# An import error inside sb_mm would otherwise read "not in the registry".
custom_imports = dict(
    imports=[
        'sb_mm.models',
        'sb_mm.datasets.packed_cifar10',
        'sb_mm.datasets.indexed_images',
        'sb_mm.engine.hooks',
        'sb_mm.engine.loops',
    ],
    allow_failed_imports=False,
)
default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer',
)
