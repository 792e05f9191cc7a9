# The demo: SB-SSDLite x0.35 on shapes, which make demo draws.
data_root = 'work_dirs/demo/devkit/VOC2007/'
classes = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

_base_ = '../ssd_sb_voc.py'

model = dict(
    backbone=dict(widen_factor=0.35),
    # Level 1 has 6 * make_divisible(96 * 0.35) = 192 channels.
    neck=dict(in_channels=(192, 1280)),
    bbox_head=dict(
        num_classes=len(classes),
        in_channels=(192, 1280, 512, 256, 256, 64),
    ),
)

# Few images and epochs: no expanded images, whose objects would be too
# small to learn in that time.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='MinIoURandomCrop',
        min_ious=(0.3, 0.5, 0.7, 0.9),
        min_crop_size=0.5,
    ),
    dict(type='Resize', scale=_base_.input_size, keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
devkit = dict(
    type='sb_mm.VOCDevkitDataset',
    data_root=data_root,
    data_prefix=dict(sub_data_root=''),
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/trainval.txt',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
        **devkit,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/test.txt',
        test_mode=True,
        pipeline=_base_.test_pipeline,
        **devkit,
    ),
)
test_dataloader = val_dataloader

# 240 images / batch 8 * 24 epochs = 720 iterations: too few for the paper's
# SGD from scratch, which finds no more than places in that time.
train_cfg = dict(max_epochs=24, val_interval=6)
randomness = dict(seed=0)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=0.05)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True),
]
default_hooks = dict(logger=dict(interval=5))
