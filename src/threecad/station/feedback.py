"""What people's answers give back: good parts for the thresholds, and labelled pictures for an evaluation.

Only parts that were set aside have answers: of the good parts of their time, all that scored above a threshold. Added
to a sample of good parts, they can but raise the score that a given share exceeds, so that a bound taken from all of
them holds, and is kept by more than it says. It would not if some of them were missing, such as the most unusual ones
that nobody has answered; parts after the oldest one without good or defect therefore do not count yet, and those up to
the newest one whose picture is no longer kept never will.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from threecad.errors import DataError
from threecad.files import replacing
from threecad.records import GOOD
from threecad.station import chain
from threecad.station.inspecting import Recipe
from threecad.station.line import Line
from threecad.station.pictures import Pictures
from threecad.station.store import Store, connect, refuse_unless_store
from threecad.verdicts import GoodPart, Look, image_name

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
_OPEN = "verdict IN ('NG', 'REVIEW') AND (answer IS NULL OR answer = 'skip')"


class Confirmed(NamedTuple):
    """A part that a person has called good."""

    id: int
    picture: str  # SHA-256
    lot: str
    is_removed: int | None  # 1 where its picture is no longer kept


def confirmed_good(store: Store, recipe: Recipe) -> list[Confirmed]:
    """Parts whose answers count, and that the thresholds do not stand on yet."""
    oldest_open = store.read(f"SELECT min(id) FROM parts WHERE recipe = ? AND {_OPEN}", (recipe.name,))[0][0]
    found = store.read(
        "SELECT id, picture, lot, removed FROM parts "
        "WHERE recipe = ? AND answer = 'good' AND score IS NOT NULL AND id < ?",
        (recipe.name, oldest_open or 2**63 - 1),
    )
    known = {part.part for part in recipe.verdicts.good.of(recipe.category)}
    new = [one for one in map(Confirmed._make, found) if image_name(one.picture) not in known]
    newest_removed = max((one.id for one in new if one.is_removed), default=0)
    return [one for one in new if one.id > newest_removed]


def looked_at(line: Line, recipe: Recipe, confirmed: Sequence[Confirmed]) -> list[tuple[GoodPart, Look]]:
    """What the confirmed parts add to the good ones of a recipe.

    Raises:
        DataError: none is there, or a picture cannot be read.
    """
    if not confirmed:
        raise DataError("no confirmed good part counts yet: answer those that wait or were skipped, the oldest first")
    return [recipe.good_part(line.pictures.path(one.picture), one.picture, one.lot) for one in confirmed]


def calibrated(line: Line, before: Recipe, who: str) -> Recipe:
    """The recipe with its confirmed good parts among those that its thresholds stand on, recorded.

    Raises:
        DataError: as of `looked_at`.
        RunError: the good parts of before were scored under other conditions.
    """
    confirmed = confirmed_good(line.store, before)
    parts = looked_at(line, before, confirmed)
    after = before.with_good_parts(parts)
    line.store.note(
        "calibration",
        {
            "recipe": before.name,
            "model": before.model,
            "parts": [one.id for one in confirmed],
            "good_parts": [[part.model_dump(), list(seen)] for part, seen in parts],
            "before": before.thresholds,
            "after": after.thresholds,
            "who": who,
        },
    )
    return after


def with_recorded(recipe: Recipe, row: chain.Row) -> Recipe:
    """The recipe with the good parts of a recorded calibration."""
    pairs = row.content["good_parts"]
    return recipe.with_good_parts([(GoodPart.model_validate(part), Look(*seen)) for part, seen in pairs])


def write_labelled(folder: Path, out: Path) -> dict[str, int]:
    """How many pictures of each place were written: OUT/RECIPE/test/good and OUT/RECIPE/test/TYPE, by people's answers.

    `threecad evaluate RUN --data OUT` reads them. The store is only read, and may be at work meanwhile.

    Raises:
        RunError: there is no store.
        FileError: `out` cannot be written.
    """
    refuse_unless_store(folder)
    with closing(connect(folder, read_only=True)) as database:
        answered = database.execute(
            "SELECT id, recipe, picture, answer, defect FROM parts WHERE answer IN ('good', 'defect') ORDER BY id"
        ).fetchall()
    pictures, counts = Pictures(folder), Counter[str]()
    for number, recipe, picture, answer, defect in answered:
        source = pictures.path(picture)
        if not source.exists():
            continue
        place = f"{_plain(recipe)}/test/{GOOD if answer == 'good' else _type(defect)}"
        target = out / place / f"{number:08}{_suffix(source)}"
        if not target.exists():
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
        counts[place] += 1
    return dict(counts)


def _type(defect: str) -> str:
    """The folder of a type of defect, whatever a person has written."""
    name = _plain(defect.strip())
    return name if name not in ("", GOOD) else "defect"


def _plain(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text)


def _suffix(picture: Path) -> str:
    """The suffix of a picture, by its first bytes."""
    with picture.open("rb") as file:
        start = file.read(4)
    return next((suffix for first, suffix in _SUFFIXES.items() if start.startswith(first)), ".png")
