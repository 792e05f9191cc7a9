# Table 5 of arXiv:2103.13080, MobileNetV2 x0.5 SE on CIFAR-10.
_base_ = [
    '../_base_/models/mobilenetv2_cifar.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar10_200e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(
    backbone=dict(widen_factor=0.5, attention=dict(type='sb_mm.SqueezeExcite'))
)
