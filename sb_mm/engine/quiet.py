"""Less of what MMEngine logs."""

import contextlib
from collections.abc import Iterator

from mmengine.logging import MMLogger


@contextlib.contextmanager
def quiet_logger() -> Iterator[None]:
    """Keep MMEngine from logging every parameter that it draws."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)
