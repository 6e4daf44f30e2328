"""What the paper prints, from `paper.toml`: scores of a method on a category, on a whole data set, in an ablation.

All scores are in per cent, as printed.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from threecad.data.catalog import DATASETS

MEAN = "mean"
FULL = "full"
"""The variant that the others of Table 6 are compared with."""


@cache
def paper() -> dict[str, Any]:
    """The content of `paper.toml`."""
    return tomllib.loads(files("threecad.benchmark").joinpath("paper.toml").read_text(encoding="utf-8"))


@cache
def scores_on_3cad() -> dict[tuple[str, str, str], float]:
    """Tables 3 and 4 by method, category as the paper abbreviates it (or `mean`), and metric."""
    return {
        (method, category, metric): value
        for table in (paper()["table3"], paper()["table4"])
        for method, text in table["rows"].items()
        for category, cell in zip(table["columns"], text.split(), strict=True)
        for metric, value in zip(table["metrics"], _numbers(cell, 2), strict=True)
        if value is not None
    }


@cache
def means() -> dict[tuple[str, str, str], float]:
    """Means over all categories of a data set (a key of `DATASETS`) by data set, method and metric."""
    table = paper()["table5"]
    found = {
        (data_set, method, metric): value
        for method, text in table["rows"].items()
        for metric, cell in zip(table["columns"], text.split(), strict=True)
        for data_set, value in zip(table["data_sets"], _numbers(cell, 2), strict=True)
        if value is not None
    }
    of_3cad = {("3cad", m, metric): v for (m, category, metric), v in scores_on_3cad().items() if category == MEAN}
    return found | of_3cad


@cache
def ablations() -> dict[tuple[str, str], float]:
    """Table 6 by variant and metric."""
    table = paper()["table6"]
    return {
        (variant, metric): float(cell)
        for variant, text in table["rows"].items()
        for metric, cell in zip(table["columns"], text.split(), strict=True)
    }


def printed_score(method: str, category: str, metric: str) -> float | None:
    """The paper's score of a method on a category, by the name of its folder; None where it prints none."""
    known = DATASETS["3cad"].find(category)
    return None if known is None else scores_on_3cad().get((method, known.abbreviation, metric))


def printed_mean(method: str, categories: frozenset[str], metric: str) -> float | None:
    """The paper's mean of a method, where these are all categories of one of its data sets and no others."""
    for key, data_set in DATASETS.items():
        known = [data_set.find(name) for name in categories]
        if None not in known and len(categories) == len(data_set.categories):
            return means().get((key, method, metric))
    return None


def _numbers(cell: str, count: int) -> list[float | None]:
    """The numbers of a printed cell such as `85.5/-`; a lone `-` stands for all of them."""
    parts = [cell] * count if cell == "-" else cell.split("/")
    return [None if part == "-" else float(part) for part in parts]
