# Table 6 of arXiv:2103.13080, MobileNetV2 x1.0 DyConv on CIFAR-10.
_base_ = [
    '../_base_/models/mobilenetv2_cifar.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar10_200e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(
    backbone=dict(
        widen_factor=1.0,
        attention_conv_cfg=dict(type='sb_mm.DynamicConv2d'),
    )
)
