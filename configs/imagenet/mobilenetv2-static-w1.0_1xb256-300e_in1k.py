# Table 1 of arXiv:2103.13080, MobileNetV2 x1.0 static.
_base_ = [
    '../_base_/models/mobilenetv2.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(backbone=dict(widen_factor=1.0))
