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
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 16, threads: int | None = None
) -> Iterator[Result]:
    """`map` in threads, one a processor unless told: results in order, at most `ahead` of them waiting."""
    pool = ThreadPoolExecutor(threads or thread_count(), thread_name_prefix="ordered")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            del item  # a large array is free as soon as its result is there
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
