# Tables 1 and 2 of arXiv:2103.13080, MobileNetV2 x0.35 SE at block output.
_base_ = [
    '../_base_/models/mobilenetv2.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(backbone=dict(type='sb_mm.SEMobileNetV2', widen_factor=0.35))
