"""Shift-and-Balance attention for OpenMMLab (arXiv:2103.13080)."""

from .models import *  # noqa: F403
from .version import __version__

__all__ = ['__version__']
