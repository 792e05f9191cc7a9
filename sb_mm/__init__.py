"""Shift-and-Balance attention for OpenMMLab (arXiv:2103.13080).

The networks, such as ``sb_mm.SBMobileNetV2``, are imported on first use: tools
that only handle files start without torch.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from . import models
from .version import __version__

__all__ = ['__version__', *models.__all__]


class OperatorFinder:
    """Let :mod:`sb_mm.ops` answer for an mmcv without compiled operators.

    It is the last of Python's finders: a compiled ``mmcv._ext`` comes first.
    ``sb_mm_ops.pth``, which is installed with the package, asks it where
    nothing has imported sb_mm yet: in the hosts' own tools.
    """

    @staticmethod
    def find_spec(name: str, *args: object) -> ModuleSpec | None:
        """Return the spec of ``mmcv._ext``, and None for any other name."""
        ours = Path(__file__).with_name('ops.py')
        found = name == 'mmcv._ext'
        return spec_from_file_location(name, ours) if found else None


sys.meta_path.append(OperatorFinder)


def __getattr__(name: str) -> Any:
    if name in models.__all__:
        return getattr(models, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
