"""What the C library does with memory that a step has freed: keep it for the next one."""

from __future__ import annotations

import ctypes
import functools
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names in malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the system after each step and asking again.

    Every block that comes back from the system has to be zeroed page by page, which costs a CPU fit about a quarter
    of its time (`bench/networks.py`). Does nothing where another C library is in charge.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 64 * 2**20)
