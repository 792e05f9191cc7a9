"""Backbones for mmdet and mmpretrain."""

from .mobilenet_v2 import (
    AttentionMobileNetV2,
    DyConvMobileNetV2,
    SBMobileNetV2,
    SEMobileNetV2,
)

__all__ = [
    'AttentionMobileNetV2',
    'DyConvMobileNetV2',
    'SBMobileNetV2',
    'SEMobileNetV2',
]
