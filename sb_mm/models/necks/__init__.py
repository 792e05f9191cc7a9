"""Necks."""

from .average_pool_dropout import AveragePoolDropout
from .ssdlite_neck import SSDLiteNeck

__all__ = ['AveragePoolDropout', 'SSDLiteNeck']
