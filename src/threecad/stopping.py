"""A stop that waits for the end of a step, so that the state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The fit was asked to stop, and has saved its state."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C, SIGTERM or SIGHUP waits for the end of the step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {signal.Signals[name]: signal.signal(signal.Signals[name], handler) for name in names}
    try:
        yield requested.is_set
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
