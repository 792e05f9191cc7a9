"""Backbones for mmdet and mmpretrain."""

from .mnasnet import AttentionMnasNet
from .mobilenet_v2 import (
    AttentionMobileNetV2,
    AttentionMobileNetV2CIFAR,
    DyConvMobileNetV2,
    SBMobileNetV2,
    SEMobileNetV2,
)
from .shufflenet_v2 import AttentionShuffleNetV2

__all__ = [
    'AttentionMnasNet',
    'AttentionMobileNetV2',
    'AttentionMobileNetV2CIFAR',
    'AttentionShuffleNetV2',
    'DyConvMobileNetV2',
    'SBMobileNetV2',
    'SEMobileNetV2',
]
