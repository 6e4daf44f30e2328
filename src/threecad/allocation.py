"""Memory: how much of it there is, and that what a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from threecad.errors import RunError

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


@contextmanager
def enough_memory() -> Iterator[None]:
    """A block in which running out of memory, of the machine's or of a GPU's, is an error that says what to do.

    Raises:
        RunError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        if isinstance(error, MemoryError) or any(sign in reason for sign in ("out of memory", "alloc")):
            raise RunError(
                f"not enough memory: {reason}\nTake a smaller method.image_size or training.batch, or another machine."
            ) from None
        raise


def available_bytes() -> float:
    """Memory that this process may still take, in bytes; infinite where the system does not say.

    The least of what the machine has left, what the container may use, and what the process may address.
    """
    left = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        left.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # no number there means no limit
        control = Path("/sys/fs/cgroup")
        left.append(int((control / "memory.max").read_text()) - int((control / "memory.current").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            left.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0.0, min(left))
