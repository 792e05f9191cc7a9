"""Networks, imported on first use: those of detectors need mmdet."""

from importlib import import_module
from typing import Any

_FOLDERS = {
    'AttentionMnasNet': 'backbones',
    'AttentionMobileNetV2': 'backbones',
    'AttentionMobileNetV2CIFAR': 'backbones',
    'AttentionShuffleNetV2': 'backbones',
    'DyConvMobileNetV2': 'backbones',
    'SBMobileNetV2': 'backbones',
    'SEMobileNetV2': 'backbones',
    'OnDeviceAugmentation': 'data_preprocessors',
    'SSDLiteHead': 'dense_heads',
    'AttentionConvModule': 'layers',
    'DynamicConv2d': 'layers',
    'ShiftBalance': 'layers',
    'SqueezeExcite': 'layers',
    'AveragePoolDropout': 'necks',
    'SSDLiteNeck': 'necks',
    'SSDLitePriorGenerator': 'task_modules',
}
__all__ = sorted(_FOLDERS)


def __getattr__(name: str) -> Any:
    if name not in _FOLDERS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_FOLDERS[name]}', __name__), name)
