"""Which past verdicts another model would change, seen before it goes live."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from threecad.errors import RunError, SettingsError, ThreeCADError
from threecad.files import replacing, write_text
from threecad.images import read_image, resize_image
from threecad.overlay import Scale, overlay
from threecad.station.inspecting import Recipe, Seen, open_recipes
from threecad.station.pictures import Pictures, shown_size, without_path
from threecad.station.store import connect, refuse_unless_store

MOST_PICTURES = 200
"""Changed parts that get a picture; all of them are in the table."""

HEADER = ("part", "name", "lot", "before", "after", "score before", "score after", "answer", "reason after")


class Change(NamedTuple):
    """A part of which the other model says something else."""

    id: int
    name: str
    lot: str
    before: str  # verdict
    after: str
    score_before: float | None
    score_after: float | None
    answer: str  # of a person; empty without
    reason_after: str


@dataclass(frozen=True)
class Replayed:
    """What the other model would change."""

    count: int  # parts looked at again
    changes: list[Change]
    missing: int  # parts whose picture is no longer there
    page: Path

    @property
    def kinds(self) -> dict[str, int]:
        """How many changes from which verdict to which."""
        return dict(Counter(f"{change.before} → {change.after}" for change in self.changes).most_common())


def replay(
    store: Path,
    folder: Path,
    out: Path,
    *,
    recipe: str | None = None,
    last: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """What another run or bundle says of the past parts of a store; also in `out`, as `changes.csv` and `index.html`.

    The store is only read, and may be at work meanwhile.

    Args:
        recipe: whose parts; of the only recipe in the store where none is named.
        last: how many parts, the latest ones.
        progress: called with how many are done, and how many there are.

    Raises:
        RunError: no store, or neither a run nor a bundle.
        SettingsError: parts of several recipes and none is named, or a run of several categories.
    """
    refuse_unless_store(store)
    other = _only(open_recipes([folder]), recipe)
    pictures, changes, missing = Pictures(store), [], 0
    parts = _parts(store, recipe, last)
    for done, said in enumerate(parts, start=1):
        path = pictures.path(said["picture"])
        if not path.exists():
            missing += 1
            continue
        change, seen = _looked_at_again(other, path, said)
        if change is not None:
            changes.append(change)
            if seen is not None and len(changes) <= MOST_PICTURES:
                _draw(out / f"{change.id}.jpg", pictures, said, other, seen)
        if progress:
            progress(done, len(parts))
    replayed = Replayed(len(parts) - missing, changes, missing, out / "index.html")
    _write(out, replayed, other)
    return replayed


def _only(recipes: dict[str, Recipe], name: str | None) -> Recipe:
    if len(recipes) == 1:
        return next(iter(recipes.values()))
    if name not in recipes:
        raise SettingsError(f"expected --recipe to name one of {', '.join(recipes)}, found {name or 'none'}")
    return recipes[name]


def _parts(store: Path, recipe: str | None, last: int) -> list[dict[str, Any]]:
    """Records of the latest parts that were inspected, the oldest first."""
    with closing(connect(store, read_only=True)) as database:
        try:
            known = [name for (name,) in database.execute("SELECT DISTINCT recipe FROM parts")]
            if recipe is None and len(known) > 1:
                raise SettingsError(f"the store has parts of {', '.join(known)}; choose one with --recipe")
            rows = database.execute(
                "SELECT body, answer FROM parts JOIN chain USING (seq) WHERE recipe = ? ORDER BY id DESC LIMIT ?",
                (recipe or (known[0] if known else ""), last),
            ).fetchall()
        except sqlite3.Error as error:
            raise RunError(f"{store / 'station.sqlite'} cannot be read: {error}") from None
    return [json.loads(body) | {"answer": answer or ""} for body, answer in reversed(rows)]


def _looked_at_again(recipe: Recipe, path: Path, said: dict[str, Any]) -> tuple[Change | None, Seen | None]:
    try:
        seen = recipe.inspect(path)
        word, reason, score = seen.result.verdict, seen.result.reason, seen.result.score
    except ThreeCADError as error:
        seen, word, reason, score = None, "REVIEW", f"not inspected: {without_path(error, path)}", None
    if word == said["verdict"]:
        return None, None
    before = (said["id"], said["part"], said["lot"], said["verdict"], word, said["score"], score)
    return Change(*before, said["answer"], reason), seen


def _draw(file: Path, pictures: Pictures, said: dict[str, Any], recipe: Recipe, seen: Seen) -> None:
    """The part as it was judged before, beside what the other model finds in it."""
    pixels = read_image(pictures.path(said["picture"]), **recipe.decoding)
    size = shown_size(pixels.shape[:2])
    after = overlay(pixels, seen.result.anomaly_map, recipe.scale(seen.result.anomaly_map))
    before: Image.Image = Image.fromarray(resize_image(pixels, size))
    if said["scale"]:  # else it was not inspected then
        encoded = pictures.overlay(said["picture"], said["id"], Scale(*said["scale"]), recipe.decoding)
        before = Image.open(io.BytesIO(encoded))
    both = Image.new("RGB", (2 * size[1] + 8, size[0]), (128, 128, 128))
    both.paste(before, (0, 0))
    both.paste(Image.fromarray(resize_image(after, size)), (size[1] + 8, 0))
    with replacing(file) as temporary:
        both.save(temporary, "JPEG", quality=85)


def _write(out: Path, replayed: Replayed, recipe: Recipe) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(replayed.changes)
    write_text(out / "changes.csv", table.getvalue())
    loader = jinja2.PackageLoader("threecad.station")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("replay.html")
    shown = _with_pictures(out, replayed.changes)
    write_text(out / "index.html", page.render(replayed=replayed, recipe=recipe, shown=shown))


def _with_pictures(out: Path, changes: Sequence[Change]) -> Iterator[Change]:
    return (change for change in changes if (out / f"{change.id}.jpg").exists())
