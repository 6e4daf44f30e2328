"""Threads: how many, so that other programs on the machine cost their share and no more; and work in them, in order."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOMENT_S = 0.2
"""For how long a command looks at the load before it chooses."""

NUMBER = "OMP_NUM_THREADS"
"""How many threads compute, in the environment; whoever sets it has chosen."""

_chosen: int | None = None


def processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def thread_count() -> int:
    """Threads for work that reads files or lets go of the interpreter: one a processor that this process may use.

    At least two, so that reading and computing overlap.
    """
    return max(2, len(processors()))


def give_way() -> None:
    """Let this process compute in as many threads as other programs leave processors.

    Threads of one operator wait for the last of them. With one more than there are free processors, each operator takes
    as long as the scheduler leaves that one out, and a fit slows down by more than the share that others take
    (`bench/load.py`). Has an effect before torch is loaded only. What the environment says already stays.
    """
    global _chosen
    if NUMBER not in os.environ:
        _chosen = free_processors()
        os.environ[NUMBER] = str(_chosen)


def asked_threads() -> int | None:
    """How many threads the environment asks for; None where it does not say a number."""
    asked = os.environ.get(NUMBER, "")
    return int(asked) if asked.isdigit() and int(asked) else None


def gave_way() -> bool:
    """Whether `give_way` has chosen the number of threads, and nobody else."""
    return _chosen is not None and os.environ.get(NUMBER) == str(_chosen)


def free_processors(moment_s: float = MOMENT_S) -> int:
    """How many of the processors that this process may use others leave, at least one; all where the system is silent.

    Args:
        moment_s: for how long to look.
    """
    allowed, before = len(processors()), _busy_s()
    time.sleep(moment_s)
    after = _busy_s()
    if before is None or after is None:
        return allowed
    return min(allowed, max(1, round(allowed - (after - before) / moment_s)))


def _busy_s() -> float | None:
    """Seconds that the processors of this process have worked since the machine started; None where it does not say."""
    try:
        mine = {f"cpu{number}" for number in processors()}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        counts = [[int(value) for value in line[1:9]] for line in lines if line[0] in mine]
        idle, waiting = 3, 4
        ticks = sum(sum(of_one) - of_one[idle] - of_one[waiting] for of_one in counts)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        return None


def ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int = 16,
    weight: Callable[[Item], int] = lambda item: 0,
    budget: int = 2**28,
    threads: int | None = None,
) -> Iterator[Result]:
    """`map` in threads, one a processor unless told: results in order, only few of them waiting.

    Args:
        ahead: how many results may wait, at most.
        weight: bytes of the result of an item.
        budget: bytes that may wait, at most; a single result may be larger.
    """
    pool = ThreadPoolExecutor(threads or thread_count(), thread_name_prefix="ordered")
    pending: deque[tuple[Future[Result], int]] = deque()
    waiting = 0
    try:
        for item in items:
            pending.append((pool.submit(function, item), weight(item)))
            waiting += pending[-1][1]
            del item  # a large array is free as soon as its result is there
            while len(pending) > ahead or (waiting > budget and len(pending) > 1):
                first, freed = pending.popleft()
                waiting -= freed
                yield first.result()
                del first
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
