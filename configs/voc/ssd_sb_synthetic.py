# The demo: SB-SSDLite x0.35 on shapes drawn by tools/make_synthetic_voc.py.
data_root = 'data/synthetic_voc/VOC2007/'
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

devkit = dict(
    type='sb_mm.VOCDevkitDataset',
    data_root=data_root,
    data_prefix=dict(sub_data_root=''),
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/trainval.txt',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=_base_.train_pipeline,
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

# 240 pictures / batch 16 = 15 iterations an epoch.
train_cfg = dict(max_epochs=20, val_interval=5)
default_hooks = dict(logger=dict(interval=5))
