"""The rows of a benchmark: `scores.json` of each finished job, with what the job was.

    DIR/rows/METHOD/CATEGORY/SEED.json          rows of the plan as it is now
        superseded/METHOD/CATEGORY/SEED-ID.json rows of other code, settings or data; in no table

A row's `benchmark` entry holds its variant, selection, data set, and the key of everything that made its numbers. Two
rows of one line of a table have to agree in all of the key but the seed and the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threecad.errors import RunError
from threecad.files import whole_files

RECIPE = ("code", "settings", "weights", "textures", "roi", "budget")
"""What rows of one method and variant have in common, whatever their seed and category."""

NEEDED = (
    *("method", "category", "seed", "i_auroc", "preset", "steps", "backbone", "image_size", "evaluation_size"),
    *("precision", "texture_source", "duration_s", "n_vanished", "hardware", "threads", "version", "libraries"),
)
"""What tables read of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """The scores of one job on one category."""

    file: Path
    scores: Mapping[str, Any]  # as in scores.json of one category
    variant: str  # "" where the plan has none
    selection: str  # "last", or "best_on_test"
    data_set: str  # its name in tables; "" where unknown
    key: Mapping[str, Any]  # empty for a row that was not made by a benchmark

    @property
    def method(self) -> str:
        """Key of the registry."""
        return str(self.scores["method"])

    @property
    def category(self) -> str:
        """Name of the category's folder."""
        return str(self.scores["category"])

    @property
    def seed(self) -> int:
        """Seed of the fit."""
        return int(self.scores["seed"])

    @property
    def learnt_together(self) -> tuple[str, ...]:
        """The categories that one model has learnt; empty where each has a model of its own."""
        categories = tuple(self.key.get("categories", ()))
        return categories if len(categories) > 1 else ()


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of all folders, each category of each finished job once.

    Raises:
        RunError: a folder without rows, a damaged row, or two rows that must not stand in one table.
    """
    rows = [row for folder in folders for file in _row_files(folder) for row in read_row_file(file)]
    return _without_twins(rows)


def read_row_file(file: Path) -> list[Row]:
    """The rows in one file: one, or one a category.

    Raises:
        RunError: it is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
        about = content.get("benchmark", {})
        rows = [
            Row(
                file,
                scores,
                about.get("variant", ""),
                about.get("selection", "last"),
                about.get("data_set", ""),
                about.get("key", {}),
            )
            for scores in content.get("categories", {"": content}).values()
        ]
        missing = [name for row in rows for name in NEEDED if name not in row.scores]
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError):
        raise RunError(f"{file} is damaged: expected a row in JSON; run the benchmark again to make it anew") from None
    if missing:
        raise RunError(f"{file} is damaged: it has no '{missing[0]}'; run the benchmark again to make it anew")
    return rows


def read_key(file: Path) -> dict[str, Any] | None:
    """The key of a row's file; None where there is no file, or one that is damaged or has no key."""
    try:
        return dict(read_row_file(file)[0].key) or None
    except (RunError, IndexError):
        return None


def _row_files(folder: Path) -> Iterator[Path]:
    files = whole_files(folder / "rows", ".json")
    if not files:
        raise RunError(
            f"expected finished rows of a benchmark in {folder / 'rows'}, found none; `threecad benchmark` makes them"
        )
    yield from files


def _without_twins(rows: Sequence[Row]) -> list[Row]:
    """Every row once, where several folders hold the same.

    Raises:
        RunError: rows of one line were made by other code or settings, or on other data.
    """
    kept: dict[tuple[object, ...], Row] = {}
    recipes: dict[tuple[object, ...], Row] = {}
    for row in rows:
        line = (row.data_set, row.selection, row.method, row.variant)
        first = recipes.setdefault(line, row)
        same_category = kept.setdefault((*line, row.category, row.seed), row)
        same_data = recipes.setdefault((*line, row.category), row)
        for other in (first, same_category, same_data):
            differ = _difference(other, row)
            if differ:
                raise RunError(
                    f"rows that differ in {differ} must not stand in one line: {other.file}, {row.file};\n"
                    "run the benchmark of one of them again, or give `threecad tables` one folder"
                )
    return list(kept.values())


def _difference(a: Row, b: Row) -> str | None:
    """The first thing that must not differ between two rows of one line of a table, and does."""
    if a is b:
        return None
    if a.learnt_together != b.learnt_together:
        return "categories"
    names = (*RECIPE, "data") if a.category == b.category else RECIPE
    return next((name for name in names if a.key.get(name) != b.key.get(name)), None)
