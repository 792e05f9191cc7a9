"""Prior boxes."""

from .prior_generator import SSDLitePriorGenerator

__all__ = ['SSDLitePriorGenerator']
