"""`threecad serve`: a station from folders, until it is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from threecad.errors import SettingsError
from threecad.station.beside import Beside, Step
from threecad.station.inspecting import open_recipes
from threecad.station.line import Limits, Line
from threecad.station.models import Models, as_started
from threecad.station.retention import Keep, Retention
from threecad.station.store import Store
from threecad.station.watching import Watched
from threecad.station.webhook import Webhook

if TYPE_CHECKING:
    from fastapi import FastAPI

    from threecad.station.safety import Guard

BACKLOG = 128
"""Connections that may wait to be taken."""


def open_line(
    folders: Sequence[Path], store: Path, limits: Limits, models: Models, notify: Callable[[str], None]
) -> Line:
    """A line with the recipes of some runs and bundles, as its engineer left them.

    Raises:
        RunError: a folder is neither a run nor a bundle, or another station works on the store.
        FileError: the store cannot be written.
    """
    recipes = open_recipes(folders)
    records = Store(store)
    left = records.settle_unfinished()
    if left:
        notify(f"{left} parts that were accepted before are recorded as not inspected")
    recipes = {name: as_started(recipe, records, models, notify) for name, recipe in recipes.items()}
    return Line(records, recipes, limits)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a station answers."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one


def serve(
    folders: Sequence[Path],
    store: Path,
    limits: Limits,
    address: Address,
    *,
    models: Models = Models(),
    keep: Keep = Keep(),
    watch: Path | None = None,
    webhook: str | None = None,
    tell: Callable[[str], None],
    notify: Callable[[str], None],
) -> None:
    """Inspect with some runs and bundles until SIGINT or SIGTERM; what was accepted is finished first.

    Args:
        models: what the engineer may put in a recipe's place.
        keep: how long pictures are kept.
        watch: folder whose pictures are inspected as they arrive.
        webhook: URL to which records are posted.
        tell: called with the address once the station answers.
        notify: called with a line worth reading.

    Raises:
        SettingsError: the address is taken, tokens or a secret are needed, or no such URL can be.
        RunError, FileError: as of `open_line`.
    """
    from threecad.station.service import make_app

    with _listening(address) as (listening, guard), _opened(folders, store, limits, models, notify) as line:
        retention = Retention(line, keep)
        steps: dict[str, Step] = {"the removal of pictures": retention.step} if keep else {}
        if watch is not None:
            line.recipe("")  # said now and not for every picture
            steps["the watch"] = Watched(line, watch).step
        if webhook is not None:
            steps["the webhook"] = Webhook(line, webhook).step
        with _beside(steps, notify):
            _answer(make_app(line, guard, models, retention), listening, tell)


def serve_demo(
    store: Path,
    limits: Limits,
    address: Address,
    *,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None],
    notify: Callable[[str], None],
) -> None:
    """The same with a model quickly fitted on drawn parts, in STORE/demo, and a simulated line of them.

    Raises:
        ThreeCADError: as of `serve`.
    """
    from threecad.demo.line import fit_line
    from threecad.station.service import make_app
    from threecad.station.simulated import simulated

    run = store / "demo" / "aluminium_cover"
    with _listening(address) as (listening, guard):
        if not run.is_dir():
            fit_line(store / "demo", progress, notify)
        with (
            _opened([run], store, limits, Models(), notify) as line,
            _beside({"the simulated line": simulated(line)}, notify),
        ):
            _answer(make_app(line, guard), listening, tell)


@contextmanager
def _opened(
    folders: Sequence[Path], store: Path, limits: Limits, models: Models, notify: Callable[[str], None]
) -> Iterator[Line]:
    line = open_line(folders, store, limits, models, notify)
    try:
        yield line
    finally:
        line.close()
        line.store.close()


@contextmanager
def _beside(steps: dict[str, Step], notify: Callable[[str], None]) -> Iterator[None]:
    """Work beside the line for as long as the block lasts."""
    works = [Beside(name, step, notify) for name, step in steps.items()]
    try:
        yield
    finally:
        for work in works:
            work.stop()


@contextmanager
def _listening(address: Address) -> Iterator[tuple[socket.socket, Guard]]:
    """The socket of the address, and who may use it; first, so that nothing is loaded in vain."""
    from threecad.station.safety import guard_for

    host, port = address.host, address.port
    guard = guard_for(host)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise SettingsError(f"cannot serve on {host}:{port}: {error.strerror}; choose another --port") from None
        yield listening, guard


def _answer(app: FastAPI, listening: socket.socket, tell: Callable[[str], None]) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    host, port = listening.getsockname()[:2]
    listening.listen(BACKLOG)
    # Ours until uvicorn has its own, and again afterwards: it raises the signal once more for whoever ran it.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
