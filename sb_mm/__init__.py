"""Shift-and-Balance attention for OpenMMLab (arXiv:2103.13080).

The networks' classes are here by their public names, such as
``sb_mm.SBMobileNetV2``. They are imported on first use, so that the tools
which only handle files start without torch.
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

    Python asks the finders of ``sys.meta_path`` in turn. This one comes last,
    so a compiled ``mmcv._ext`` is found before it. ``sb_mm_ops.pth``, which is
    installed with the package, asks it also where nothing has imported sb_mm
    yet: in the hosts' own tools.
    """

    @staticmethod
    def find_spec(name: str, *args: object) -> ModuleSpec | None:
        """Return the spec of ``mmcv._ext``, and None for any other name."""
        if name != 'mmcv._ext':
            return None
        return spec_from_file_location(
            name, Path(__file__).with_name('ops.py')
        )


sys.meta_path.append(OperatorFinder)


def __getattr__(name: str) -> Any:
    if name in models.__all__:
        return getattr(models, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *models.__all__])
