"""Metrics; the ones built on mmdet are there when mmdet is installed."""

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .voc_metric import PascalVOCMetric

    __all__ += ['PascalVOCMetric']
