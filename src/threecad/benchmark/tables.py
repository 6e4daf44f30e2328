"""Markdown tables of a benchmark's rows, laid out as the paper's Tables 3 and 4."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from threecad.errors import RunError
from threecad.methods import METHODS

PAIRS = ((("p_auroc", "p_ap"), "P-AUROC / AP"), (("i_auroc", "p_pro"), "I-AUROC / P-PRO"))
GROUPS = ("E-b", "A-syn", "R-b", "U-ni")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The scores of every category of every finished job, flat.

    Raises:
        RunError: no benchmark, or no finished job, in the folder; a row that is damaged.
    """
    files = sorted((folder / "rows").rglob("*.json"))
    if not files:
        raise RunError(
            f"expected finished rows of a benchmark in {folder / 'rows'}, found none; `threecad benchmark` makes them"
        )
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} is not readable: {error}; remove it and run the benchmark again") from None
        rows += content["categories"].values() if "categories" in content else [content]
    return rows


def tables(folder: Path) -> str:
    """Markdown: both pairs of metrics a method and category, then how each row came about."""
    rows = read_rows(folder)
    parts = [pair_table(rows, metrics, title) for metrics, title in PAIRS]
    return "\n".join([*parts, provenance(rows)])


def pair_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], title: str) -> str:
    """One table: a line a method, a column a category and the mean, `first / second` metric in per cent."""
    categories = sorted({row["category"] for row in rows})
    lines = [["group", "method", *categories, "mean"], ["---"] * 2 + ["---:"] * (len(categories) + 1)]
    for method in _in_order({row["method"] for row in rows}):
        cells = []
        by_category: list[list[float | None]] = []
        for category in categories:
            found = [row for row in rows if row["method"] == method and row["category"] == category]
            cells.append(" / ".join(_mean_and_spread([row[metric] for row in found]) for metric in metrics))
            by_category.append([_mean([row[metric] for row in found]) for metric in metrics])
        means = [_mean([values[k] for values in by_category]) for k in range(len(metrics))]
        paper = METHODS.paper(method)
        lines.append([paper.group, paper.name, *cells, " / ".join(map(_per_cent, means))])
    return f"**{title}** (per cent)\n\n" + _markdown(lines) + "\n"


def provenance(rows: Sequence[Mapping[str, Any]]) -> str:
    """How each row came about: what a reader needs to run it again, or to doubt it."""
    header = [
        "method",
        "preset",
        "steps",
        "backbone",
        "image",
        "precision",
        "textures",
        "seeds",
        "fit, s",
        "defects vanished",
    ]
    lines = [header, ["---"] * len(header)]
    for method in _in_order({row["method"] for row in rows}):
        of = [row for row in rows if row["method"] == method]
        durations = sorted({(row["category"], row["seed"]): row["duration_s"] for row in of}.values())
        lines.append(
            [
                METHODS.paper(method).name,
                _joined(row["preset"] for row in of),
                _joined(row["steps"] for row in of),
                _joined(row["backbone"] or "–" for row in of),
                _joined("×".join(map(str, row["image_size"])) for row in of),
                _joined(row["precision"] for row in of),
                _joined(row["texture_source"] or "–" for row in of),
                _joined(row["seed"] for row in of),
                f"{durations[0]:.0f}–{durations[-1]:.0f}",
                str(sum(row["n_vanished"] for row in of)),
            ]
        )
    facts = _joined(f"{row['hardware']}, {row['threads']} threads, {_versions(row)}" for row in rows)
    evaluated = _joined("×".join(map(str, row["evaluation_size"])) for row in rows)
    return f"{_markdown(lines)}\n\nLast step, no selection on test images. Maps and masks met at {evaluated}. {facts}."


def _versions(row: Mapping[str, Any]) -> str:
    return f"ThreeCAD {row['version']}, torch {row['libraries']['torch']}"


def _in_order(methods: Iterable[str]) -> list[str]:
    """By the paper's groups, CFRG last as in the paper."""
    known = list(METHODS)
    return sorted(methods, key=lambda m: (m == "cfrg", GROUPS.index(METHODS.paper(m).group), known.index(m)))


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present and len(present) == len(values) else None


def _mean_and_spread(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    spread = f" ± {100 * statistics.stdev(present):.1f}" if len(present) > 1 else ""
    return _per_cent(_mean(values)) + spread


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
