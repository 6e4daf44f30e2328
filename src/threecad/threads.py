"""Work in threads whose results come back in order, without running far ahead of who takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """Threads for work that reads files or lets go of the interpreter: one a processor that this process may use.

    At least two, so that reading and computing overlap.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, allowed or 2)


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
