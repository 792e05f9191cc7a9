# SBMobileNetV2 under mmdet's RetinaNet with FPN on COCO, of which
# arXiv:2103.13080 has no numbers. 12 epochs are for a trunk with published
# weights: see docs/fine_tune.md.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
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
)

env_cfg = dict(cudnn_benchmark=False)  # images differ in size
find_unused_parameters = True  # the backbone's last stage, on several GPUs

# On one GPU: a gate normalises over the images of a batch, for which mmdet's
# 2 a GPU are too few.
train_dataloader = dict(batch_size=16, num_workers=4)
optim_wrapper = dict(optimizer=dict(lr=0.01))

default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
