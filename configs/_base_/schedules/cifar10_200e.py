# Section 5.3 of arXiv:2103.13080: SGD, batch 128, 0.1 cosine to 0, 200 epochs.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        fused=True,  # one kernel for all weights: equal up to rounding
    ),
)
# No T_max: MMEngine takes train_cfg.max_epochs, so that a run shortened by
# --cfg-options still ends at 0.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True)]

auto_scale_lr = dict(enable=False, base_batch_size=128)
