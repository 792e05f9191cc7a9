# What detectors and classifiers have in common.

default_hooks = dict(
    divergence=dict(type='sb_mm.DivergenceHook'),
    validate_resumed=dict(type='sb_mm.ValidateResumedHook'),
    # See docs/attention.md; it takes time in every epoch. Also by
    # --cfg-options default_hooks.attention.type=sb_mm.AttentionStatsHook
    # attention=dict(type='sb_mm.AttentionStatsHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,  # every image has the same size
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [
    dict(type='LocalVisBackend'),
    dict(type='TensorboardVisBackend'),
]
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
