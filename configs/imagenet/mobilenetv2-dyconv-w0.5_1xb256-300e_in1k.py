# Table 1 of arXiv:2103.13080, MobileNetV2 x0.5 DyConv.
_base_ = [
    '../_base_/models/mobilenetv2.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(backbone=dict(type='sb_mm.DyConvMobileNetV2', widen_factor=0.5))
