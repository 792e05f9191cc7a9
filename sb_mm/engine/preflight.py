"""Names of checks that moved; until nobody imports them from here."""

from .checkpoints import check_checkpoint, pretrained_files
from .checks import check_data

__all__ = ['check_checkpoint', 'check_data', 'pretrained_files']
