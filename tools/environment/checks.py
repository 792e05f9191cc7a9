"""Looks at the machine before anything is started."""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from . import SetupError
from .plan import PYTHON_VERSION, Plan
from .state import NAME

GIB = 2**30
VENV_GIB = 12  # torch with its CUDA libraries, and pip's copy of the wheels
BUILD_GIB = 2  # mmcv's objects and wheel
TEMPORARY_GIB = 4  # wheels while pip downloads them


def check_room(folder: Path, needed: float, advice: str) -> None:
    """Check that the disk of `folder` has room.

    Args:
        folder: An existing folder.
        needed: GiB that will be written.
        advice: What to do if they do not fit.

    Raises:
        SetupError: If less than `needed` is free.
    """
    free = shutil.disk_usage(folder).free / GIB
    if free < needed:
        raise SetupError(
            f'About {needed:g} GiB of disk are needed in {folder}, and '
            f'{free:.1f} GiB are free; {advice}.'
        )


def check_fresh(plan: Plan) -> None:
    """Check that a new environment can be made.

    Args:
        plan: The environment.

    Raises:
        SetupError: If its folder is somebody else's, Python has no ``venv``
            module, or the disk is too full.
    """
    if os.path.lexists(plan.venv) and not (plan.venv / NAME).exists():
        raise SetupError(
            f'{plan.venv} exists and was not made by `make env`; move it away '
            'or, to work in it, install sb_mm there by `pip install -e .`.'
        )
    if not all(map(importlib.util.find_spec, ('venv', 'ensurepip'))):
        raise SetupError(
            f'This Python {PYTHON_VERSION} has no venv module; install it, '
            f'for example by `apt install python{PYTHON_VERSION}-venv`.'
        )
    check_room(plan.root, VENV_GIB, 'make room or clone to another disk')
    temporary = Path(tempfile.gettempdir())
    check_room(temporary, TEMPORARY_GIB, 'set TMPDIR to a larger folder')


def check_compiler() -> None:
    """Check that C++ extensions of Python can be built.

    Raises:
        SetupError: If there is no compiler, or Python's headers are missing.
    """
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler.split()[0]):
        raise SetupError(
            f'No C++ compiler ({compiler}) was found to build mmcv with; '
            'install one, for example by `apt install g++`, or set CXX.'
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.exists():
        raise SetupError(
            f'mmcv is built with {header}, which is missing; install it, for '
            f'example by `apt install python{PYTHON_VERSION}-dev`.'
        )
