"""`threecad serve`: a station from folders, until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from threecad.errors import SettingsError
from threecad.station.inspecting import Recipe, open_recipes
from threecad.station.line import Limits, Line
from threecad.station.store import Store


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


def serve(
    line: Line, host: str, port: int, notify: Callable[[str], None], beside: Callable[[], None] | None = None
) -> None:
    """Answer until SIGINT or SIGTERM; what was accepted is finished first.

    Args:
        beside: called once the service answers.

    Raises:
        SettingsError: the extra `station` is not installed, the address is taken, or tokens are needed.
    """
    try:
        import uvicorn

        from threecad.station.safety import guard_for
        from threecad.station.service import make_app
    except ImportError as error:
        raise SettingsError(f"{error.name} is not installed; `pip install threecad[station]` brings it") from None
    app = make_app(line, guard_for(host))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise SettingsError(f"cannot serve on {host}:{port}: {error.strerror}; choose another --port") from None
        listening.listen(128)
        notify(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        if beside is not None:
            beside()
        uvicorn.Server(config).run(sockets=[listening])
    line.store.close()


def as_left(recipe: Recipe, records: Store) -> Recipe:
    """The recipe with the budgets that the engineer last gave this model."""
    for row in reversed(records.notes("thresholds")):
        said = row.content
        if said["recipe"] == recipe.name and said["model"] == recipe.model:
            return recipe.with_budgets(**said["budgets"])
    return recipe


def _note_model(records: Store, name: str, recipe: Recipe) -> None:
    """Record which model inspects from now on, where it is another one than before."""
    before = [row.content["model"] for row in records.notes("model") if row.content["recipe"] == name]
    if not before or before[-1] != recipe.model:
        content = {"recipe": name, "model": recipe.model, "method": recipe.predictor.method}
        records.note("model", {**content, "thresholds": recipe.thresholds})
