_base_ = './common_runtime.py'

# An import error inside sb_mm would otherwise read "not in the registry".
custom_imports = dict(
    imports=[
        'sb_mm.models',
        'sb_mm.datasets.voc_devkit',
        'sb_mm.engine.hooks',
        'sb_mm.evaluation.voc_metric',
    ],
    allow_failed_imports=False,
)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='pascal_voc/mAP',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer',
)
