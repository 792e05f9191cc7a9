_base_ = './common_runtime.py'

# An import error in it would otherwise read "not in the registry".
custom_imports = dict(imports=['sb_mm.registry'], allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='sb_mm.AtomicCheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='pascal_voc/mAP',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='sb_mm.DrawingHook'),
)
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=_base_.vis_backends,
    name='visualizer',
)
