"""Work in processes of this machine, each with processors (and a GPU, where there are several) of its own.

A worker lives for many items, so that libraries load once. It leaves as soon as its parent is gone, however that ended:
nobody writes into a folder that the next attempt already uses.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from threecad.engines import Ended, Engine, attempt
from threecad.threads import processors

Item = TypeVar("Item")

PATIENCE_S = 60.0
"""Seconds that a worker has to save its state when all are asked to stop."""


def map_locally(
    function: Callable[[Item], Any], items: Sequence[Item], engine: Engine, retries: int
) -> Iterator[Ended]:
    """How each item went, in the order in which they end."""
    waiting = deque((index, retries) for index in range(len(items)))
    crew = [_Worker(number, engine) for number in range(min(engine.workers, len(items)))]
    try:
        while waiting or any(worker.is_busy for worker in crew):
            for worker in crew:
                if waiting and not worker.is_busy:
                    index, tries = waiting.popleft()
                    worker.start(function, index, items[index], tries)
            ready = wait([worker.connection for worker in crew if worker.is_busy])
            for worker in [worker for worker in crew if worker.connection in ready]:
                ended = worker.collect()
                if ended.failure is not None and worker.is_dead and worker.tries:
                    waiting.appendleft((ended.index, worker.tries - 1))
                else:
                    yield ended
                if worker.is_dead:
                    crew[crew.index(worker)] = _Worker(worker.number, engine)
    finally:
        _stop(crew)


class _Worker:
    """A process, and the item that it is at."""

    def __init__(self, number: int, engine: Engine) -> None:
        self.number, self.index, self.tries, self.is_dead = number, -1, 0, False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        own = processors()[number * engine.share :][: engine.share]
        environment = {"OMP_NUM_THREADS": str(engine.threads), **_gpu(number)}
        self.process = context.Process(target=_serve, args=(theirs, own, environment), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def is_busy(self) -> bool:
        """Whether an item is being worked on."""
        return self.index >= 0

    def start(self, function: Callable[[Item], Any], index: int, item: Item, tries: int) -> None:
        """Hand over an item; a worker that has died meanwhile is found out when its result is collected."""
        self.index, self.tries = index, tries
        try:
            self.connection.send((function, index, item))
        except OSError:
            self.is_dead = True

    def collect(self) -> Ended:
        """How the item went; waits until it has."""
        index, self.index = self.index, -1
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.is_dead = True
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return Ended(index, None, f"its process {how}" + ("; out of memory?" if code == -9 else ""), died=True)


def _serve(connection: Connection, own: Sequence[int], environment: dict[str, str]) -> None:
    """A worker's life: items in, results out, until nobody sends any more."""
    os.environ.update(environment)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which asks the workers to stop
    if own and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            function, index, item = connection.recv()
        except EOFError:
            return
        try:
            connection.send(attempt(function, index, item))
        except KeyboardInterrupt:  # a fit that was told to stop and has saved its state: no fault, so no traceback
            sys.exit(128 + signal.SIGTERM)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(crew: Sequence[_Worker]) -> None:
    """End all processes; a busy one may save its state first."""
    for worker in crew:
        worker.connection.close()
        if worker.is_busy:
            worker.process.terminate()
    for worker in crew:
        worker.process.join(PATIENCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _gpu(number: int) -> dict[str, str]:
    """The environment that shows worker `number` one of several GPUs; empty where there are none to share out."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = (
        named.split(",") if named is not None else [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    )
    return {"CUDA_VISIBLE_DEVICES": found[number % len(found)]} if len(found) > 1 else {}
