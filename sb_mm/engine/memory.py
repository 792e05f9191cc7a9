"""The C library's memory allocator, set for training on a CPU."""

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default it gives every large block back to the kernel, which hands it
    out again page by page, zeroed: a fifth of a training step of SB
    MobileNetV2 x0.35. The process keeps its peak of memory instead.

    Returns:
        Whether the allocator is glibc's and took the settings.
    """
    if sys.platform != 'linux':
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    settings = (
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 256 * 2**20),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
