"""Shift-and-Balance attention for OpenMMLab (arXiv:2103.13080).

The networks' classes are here by their public names, such as
``sb_mm.SBMobileNetV2``. They are imported on first use, so that the tools
which only handle files start without torch.
"""

from importlib import import_module
from typing import Any

from .version import __version__

__all__ = ['__version__']


def __getattr__(name: str) -> Any:
    if not name.startswith('_'):
        models = import_module('.models', __name__)
        if hasattr(models, name):
            return getattr(models, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
