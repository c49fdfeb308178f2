"""What the allocator keeps, and how it gives it back.

glibc holds on to freed memory and learns to keep larger and larger blocks; on another C library nothing happens here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt


def give_back() -> None:
    """Return memory that is no longer used to the system, so that one stage's is not counted as the next one's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def steady() -> None:
    """From here on blocks of 8 MiB and more go back to the system as soon as they are free, and smaller ones stay for the next step."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 8 << 20)
        library.mallopt(_TRIM_THRESHOLD, 1 << 30)
