"""Folding and export of trained networks."""

from .fold import fold

__all__ = ['fold']
