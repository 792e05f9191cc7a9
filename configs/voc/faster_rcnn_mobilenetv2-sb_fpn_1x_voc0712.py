# SBMobileNetV2 under a stock detector of two stages: mmdet's Faster R-CNN with
# FPN. Only the backbone's line and the channels that the FPN takes are ours.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/fpn_1x_voc0712.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='sb_mm.SBMobileNetV2',
        out_indices=(1, 2, 4, 6),  # strides 4, 8, 16, 32
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
