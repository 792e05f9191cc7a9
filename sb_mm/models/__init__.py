"""Networks, imported on first use: those of detectors need mmdet."""

from importlib import import_module
from typing import Any

_CLASSES = {
    'backbones': (
        'AttentionMnasNet',
        'AttentionMobileNetV2',
        'AttentionMobileNetV2CIFAR',
        'AttentionShuffleNetV2',
        'DyConvMobileNetV2',
        'SBMobileNetV2',
        'SEMobileNetV2',
    ),
    'data_preprocessors': ('OnDeviceAugmentation',),
    'dense_heads': ('SSDLiteHead',),
    'layers': (
        'AttentionConvModule',
        'DynamicConv2d',
        'ShiftBalance',
        'SqueezeExcite',
    ),
    'necks': ('AveragePoolDropout', 'SSDLiteNeck'),
    'task_modules': ('SSDLitePriorGenerator',),
}
_FOLDERS = {name: part for part, names in _CLASSES.items() for name in names}
__all__ = sorted(_FOLDERS)


def __getattr__(name: str) -> Any:
    if name not in _FOLDERS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_FOLDERS[name]}', __name__), name)
