"""Shift-and-Balance attention for OpenMMLab (arXiv:2103.13080).

The networks' classes are here by their public names, such as
``sb_mm.SBMobileNetV2``. They are imported on first use, so that the tools
which only handle files start without torch.
"""

from importlib import import_module
from typing import Any

from .version import __version__

_CLASSES = (
    'AttentionConvModule',
    'AttentionMnasNet',
    'AttentionMobileNetV2',
    'AttentionMobileNetV2CIFAR',
    'AttentionShuffleNetV2',
    'AveragePoolDropout',
    'DyConvMobileNetV2',
    'DynamicConv2d',
    'SBMobileNetV2',
    'SEMobileNetV2',
    'SSDLiteHead',
    'SSDLiteNeck',
    'SSDLitePriorGenerator',
    'ShiftBalance',
    'SqueezeExcite',
)
__all__ = ['__version__', *_CLASSES]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module('.models', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES])
