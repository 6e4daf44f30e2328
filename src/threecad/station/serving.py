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
from threecad.station import chain
from threecad.station.beside import Beside, Step
from threecad.station.feedback import with_recorded
from threecad.station.inspecting import Recipe, open_recipes
from threecad.station.line import Limits, Line
from threecad.station.store import Store
from threecad.station.watching import Watched
from threecad.station.webhook import Webhook

if TYPE_CHECKING:
    from threecad.station.safety import Guard

BACKLOG = 128
"""Connections that may wait to be taken."""


def open_line(folders: Sequence[Path], store: Path, limits: Limits, notify: Callable[[str], None]) -> Line:
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
    recipes = {name: as_left(recipe, records) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        _note_model(records, name, recipe)
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
    watch: Path | None = None,
    webhook: str | None = None,
    tell: Callable[[str], None],
    notify: Callable[[str], None],
) -> None:
    """Inspect with some runs and bundles until SIGINT or SIGTERM; what was accepted is finished first.

    Args:
        watch: folder whose pictures are inspected as they arrive.
        webhook: URL to which records are posted.
        tell: called with the address once the station answers.
        notify: called with a line worth reading.

    Raises:
        SettingsError: the address is taken, tokens or a secret are needed, or no such URL can be.
        RunError, FileError: as of `open_line`.
    """
    with _listening(address) as (listening, guard), _opened(folders, store, limits, notify) as line:
        steps: dict[str, Step] = {}
        if watch is not None:
            line.recipe("")  # said now and not for every picture
            steps["the watch"] = Watched(line, watch).step
        if webhook is not None:
            steps["the webhook"] = Webhook(line, webhook).step
        with _beside(steps, notify):
            _answer(line, guard, listening, tell)


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
    from threecad.station.simulated import simulated

    run = store / "demo" / "aluminium_cover"
    with _listening(address) as (listening, guard):
        if not run.is_dir():
            fit_line(store / "demo", progress, notify)
        with _opened([run], store, limits, notify) as line, _beside({"the simulated line": simulated(line)}, notify):
            _answer(line, guard, listening, tell)


@contextmanager
def _opened(folders: Sequence[Path], store: Path, limits: Limits, notify: Callable[[str], None]) -> Iterator[Line]:
    line = open_line(folders, store, limits, notify)
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


def _answer(line: Line, guard: Guard, listening: socket.socket, tell: Callable[[str], None]) -> None:
    import uvicorn

    from threecad.station.service import make_app

    config = uvicorn.Config(make_app(line, guard), log_level="warning", access_log=False, server_header=False)
    host, port = listening.getsockname()[:2]
    listening.listen(BACKLOG)
    tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    # uvicorn stops gracefully on SIGTERM and then raises it once more, for whoever ran it: for us, who are done.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def as_left(recipe: Recipe, records: Store) -> Recipe:
    """The recipe with the good parts and budgets that the engineer gave this model; its folder's budgets if newer."""

    def of_this_model(kind: str) -> list[chain.Row]:
        asked = {"recipe": recipe.name, "model": recipe.model}
        return [row for row in records.notes(kind) if asked.items() <= row.content.items()]

    for row in of_this_model("calibration"):
        recipe = with_recorded(recipe, row)
    changes = of_this_model("thresholds")
    if changes and changes[-1].content["budgets_of_run"] == recipe.budgets_of_run:
        return recipe.with_budgets(**changes[-1].content["budgets"])
    return recipe


def _note_model(records: Store, name: str, recipe: Recipe) -> None:
    """Record which model inspects from now on, where it is another one than before."""
    before = [row.content["model"] for row in records.notes("model") if row.content["recipe"] == name]
    if not before or before[-1] != recipe.model:
        content = {"recipe": name, "model": recipe.model, "method": recipe.predictor.method}
        records.note("model", {**content, "thresholds": recipe.thresholds})
