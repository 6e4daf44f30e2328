"""Work on Ray: one task an item, in a process of its own, on a cluster that is there or on one of this machine.

Ray collects statistics of its use and serves a web page unless told otherwise: both are off. A cluster of one's own
listens on the loopback device only, so that it also starts where there is no network. Tokens, which Ray 2.60 makes and
looks for by itself, keep others out.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from threecad.engines import Ended, Engine, attempt
from threecad.errors import RunError, SettingsError
from threecad.threads import processors

Item = TypeVar("Item")

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Ray replaces 127.0.0.1 by the address under which a machine outside would see this one, and asks one for it."""

BEFORE_START = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

MOST_SUBMITTED = 1000
"""Tasks that the cluster knows of at a time: each wait looks at all of them."""

PATIENCE_S = 60.0
"""Seconds that running tasks have to save their state when all are asked to stop."""


def map_on_ray(
    function: Callable[[Item], Any], items: Sequence[Item], engine: Engine, retries: int, fresh: bool
) -> Iterator[Ended]:
    """How each item went, in the order in which they end."""
    ray = _ray()
    with _connected(ray, engine):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        threads = min(engine.threads, int(max(node.get("CPU", 0) for node in nodes)) or 1)
        gpus = 1 if any(node.get("GPU", 0) for node in nodes) else 0
        resources = {"num_cpus": threads, "num_gpus": gpus}
        task = ray.remote(**resources, max_calls=1 if fresh else 0, max_retries=retries)(_attempt_in)
        here, waiting = str(Path.cwd()), iter(enumerate(items))
        pending: dict[Any, int] = {}
        try:
            while True:
                for index, item in islice(waiting, MOST_SUBMITTED - len(pending)):
                    pending[task.remote(here, function, index, item)] = index
                if not pending:
                    return
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                index = pending.pop(ready)
                try:
                    yield ray.get(ready)
                except ray.exceptions.RayError as error:
                    reason = str(error).splitlines()[0]
                    yield Ended(index, None, f"its process on the cluster ended: {reason}", died=True)
        finally:
            for reference in pending:
                ray.cancel(reference)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=PATIENCE_S)


def _attempt_in(folder: str, function: Callable[[Item], Any], index: int, item: Item) -> Ended:
    """`attempt`, where relative paths mean what they mean to the process that asks."""
    with suppress(OSError):  # a machine without that folder, where absolute paths still serve
        os.chdir(folder)
    return attempt(function, index, item)


def _ray() -> Any:
    for name, value in BEFORE_START.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise SettingsError("the engine 'ray' needs Ray, which is not installed: pip install 'threecad[ray]'") from None
    return ray


@contextmanager
def _connected(ray: Any, engine: Engine) -> Iterator[None]:
    """Within, Ray runs; a connection that was there before stays."""
    if ray.is_initialized():
        yield
        return
    if engine.address:
        _refuse_unless_answering(engine.address)
        where: dict[str, Any] = {"address": engine.address}
    else:
        where = {"num_cpus": len(processors()), "include_dashboard": False, "_node_ip_address": LOOPBACK}
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        place = f"the Ray cluster at {engine.address}" if engine.address else "a Ray cluster of one's own"
        raise RunError(f"expected {place} to let us in, found: {str(error).strip().splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_unless_answering(address: str) -> None:
    """Nothing, where someone listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        RunError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if "//" in address or not colon:
        return  # an address that only Ray understands, such as `auto`
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise RunError(
            f"expected a Ray cluster at {address}, found none: {error}; start one with `ray start --head`, "
            "or leave --address out"
        ) from None
