# An import error inside sb_mm would otherwise read "not in the registry".
custom_imports = dict(
    imports=[
        'sb_mm.models',
        'sb_mm.datasets.voc_devkit',
        'sb_mm.engine.attention_stats_hook',
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
    type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
