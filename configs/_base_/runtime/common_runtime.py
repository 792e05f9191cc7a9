# What detectors and classifiers have in common.

# Layer by layer, what tools/plot.py attention draws.
custom_hooks = [dict(type='sb_mm.AttentionStatsHook')]

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
