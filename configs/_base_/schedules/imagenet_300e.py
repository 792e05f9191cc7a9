# Section 5.1 of arXiv:2103.13080: SGD, batch 256, 0.1 linear to 0, 300 epochs.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=4e-5),
)
# By iteration: by epoch, the whole last one would train at a rate of 0. No
# end: MMEngine takes train_cfg.max_epochs, so that a shortened run ends at 0.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]

auto_scale_lr = dict(enable=False, base_batch_size=256)
