# SBMobileNetV2 under a stock detector: mmdet's RetinaNet with FPN. Only the
# backbone's line and the channels that the FPN takes from it are ours.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/voc0712.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/runtime/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='sb_mm.SBMobileNetV2',
        out_indices=(1, 2, 4, 6),  # strides 4, 8, 16, 32
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
    bbox_head=dict(num_classes=20),
)

env_cfg = dict(cudnn_benchmark=False)  # images differ in size

# mmdet's schedule is for a batch of 16 on 8 GPUs.
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=16)

image_scale = (600, 600)  # pixels
train_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
voc07, voc12 = _base_.train_dataloader.dataset.datasets
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        datasets=[
            {**voc07, 'pipeline': train_pipeline},
            {**voc12, 'pipeline': train_pipeline},
        ]
    ),
)
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
