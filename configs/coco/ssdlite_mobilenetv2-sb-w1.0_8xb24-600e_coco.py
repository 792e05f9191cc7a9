# SB-SSDLite x1.0 on COCO, of which arXiv:2103.13080 has no numbers. Input,
# priors, augmentation and schedule are those of mmdet's
# ssdlite_mobilenetv2-scratch_8xb24-600e_coco, to compare the two.
_base_ = [
    '../_base_/models/ssdlite_mobilenetv2.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/ssdlite_200e.py',
    '../_base_/runtime/default_runtime.py',
]

input_size = (320, 320)  # pixels, width and height

model = dict(
    backbone=dict(type='sb_mm.SBMobileNetV2'),
    bbox_head=dict(
        num_classes=80,
        anchor_generator=dict(
            input_size=320,  # pixels, as are the following
            strides=[16, 32, 64, 107, 160, 320],
            min_sizes=[48, 100, 150, 202, 253, 304],
            max_sizes=[100, 150, 202, 253, 304, 320],
        ),
    ),
    test_cfg=dict(nms_pre=1000, score_thr=0.02, max_per_img=200),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # Expand, MinIoURandomCrop, Resize, RandomFlip and PhotoMetricDistortion.
    dict(
        type='sb_mm.SSDAugmentation',
        scale=input_size,
        photometric=dict(
            brightness_delta=32,
            contrast_range=(0.5, 1.5),
            saturation_range=(0.5, 1.5),
            hue_delta=18,
        ),
        expand=dict(mean=[127, 127, 127], ratio_range=(1, 4)),
        crop=dict(min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
        flip_prob=0.5,
        distort_fill=True,
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=input_size, keep_ratio=False),
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
coco = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=24,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=5,
        dataset={**coco, 'pipeline': train_pipeline},
    ),
)
val_dataloader = dict(
    batch_size=24, num_workers=4, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=120)  # of 5 passes over the images each
optim_wrapper = dict(optimizer=dict(lr=0.015))  # 8 GPUs with 24 images each
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True),
]
auto_scale_lr = dict(base_batch_size=192)

default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
