# mmdet's detectors with FPN on VOC: the images keep their shape.
_base_ = [
    './datasets/voc0712.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    './runtime/default_runtime.py',
]

# On several GPUs: no one reads the network's last convolution.
find_unused_parameters = True
env_cfg = dict(cudnn_benchmark=False)  # images differ in size

# The rate of mmdet's own VOC configs, for a batch of 16.
optim_wrapper = dict(optimizer=dict(lr=0.01))

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
