"""Transforms of data pipelines."""

from .ssd_augmentation import SSDAugmentation

__all__ = ['SSDAugmentation']
