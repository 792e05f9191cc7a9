# An import error inside sb_mm would otherwise read "not in the registry".
custom_imports = dict(
    imports=[
        'sb_mm.models',
        'sb_mm.datasets.packed_cifar10',
        'sb_mm.engine.attention_stats_hook',
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
# Layer by layer, what tools/plot.py attention draws.
custom_hooks = [dict(type='sb_mm.AttentionStatsHook')]

env_cfg = dict(
    cudnn_benchmark=True,  # every picture has the same size
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [
    dict(type='LocalVisBackend'),
    dict(type='TensorboardVisBackend'),
]
visualizer = dict(
    type='UniversalVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
