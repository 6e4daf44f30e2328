"""The paper's Tables 3 to 6 from the rows of a benchmark, as data: cells with mean, spread, and who is best.

Beside each line stand the paper's numbers and the difference, on the paper's categories. Rows whose epoch was chosen
on the test images get tables of their own. `layouts.py` writes tables down.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from threecad import methods
from threecad.benchmark.paper import FULL, MEAN, ablations, printed_mean, printed_score
from threecad.benchmark.rows import Row
from threecad.data.catalog import DATASETS
from threecad.methods import METHODS

TITLES = {
    "p_auroc": "P-AUROC",
    "p_ap": "AP",
    "i_auroc": "I-AUROC",
    "p_pro_per_image": "P-PRO per image (the paper's)",
    "p_pro": "P-PRO pooled",
}
"""The metrics of the paper's tables; P-PRO in both definitions."""

PAIRS = (("p_auroc", "p_ap"), ("i_auroc", "p_pro_per_image"), ("i_auroc", "p_pro"))
"""The a/b cells of Tables 3 and 4; then Table 4 with the P-PRO of other papers."""

METRICS = ("p_auroc", "i_auroc", "p_pro_per_image", "p_pro", "p_ap")
"""The columns of Tables 5 and 6."""

GROUPS = ("E-b", "A-syn", "R-b", "U-ni")


class Value(NamedTuple):
    """A number in per cent."""

    mean: float
    std: float | None = None  # over seeds
    best: bool = False  # of its column, to the printed digit
    signed: bool = False  # a difference


Cell = tuple[Value | None, ...]
"""`a` or `a / b`; None was not run."""


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = "ours"  # or "paper", or "difference"


@dataclass(frozen=True)
class Table:
    """What a layout writes down."""

    title: str
    labels: tuple[str, ...]  # heads of the columns of words
    columns: tuple[str, ...]  # heads of the columns of numbers
    lines: tuple[Line, ...]
    metrics: tuple[tuple[str, ...], ...]  # of each column of numbers


class Entry(NamedTuple):
    """Who a line of Tables 3 to 5 is about."""

    group: str
    name: str
    method: str
    variant: str


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Tables 3 and 4 of each data set, 5 where there are several, 6 where there are variants."""
    tables: list[Table] = []
    for selection in sorted({row.selection for row in rows}, key=lambda name: name != "last"):
        chosen = [row for row in rows if row.selection == selection]
        suffix = "" if selection == "last" else ", epoch chosen on the test images"
        data_sets = list(dict.fromkeys(row.data_set for row in chosen))
        for name in data_sets:
            of_set = [row for row in chosen if row.data_set == name]
            where = f" on {name}" if len(data_sets) > 1 else ""
            tables += [pair_table(of_set, pair, where + suffix) for pair in PAIRS]
        if len(data_sets) > 1:
            tables.append(data_set_table(chosen, suffix))
        for name in data_sets:
            tables += ablation_tables([row for row in chosen if row.data_set == name], suffix)
    return tables


def pair_table(rows: Sequence[Row], pair: Sequence[str], suffix: str = "") -> Table:
    """Table 3 or 4: a line a method, a column a category and the mean, an `a / b` cell of two metrics."""
    columns = _columns(rows)
    lines = []
    for entry, of_entry in _entries(rows):
        cells = [tuple(_value(of_entry, over, metric) for metric in pair) for over in columns.values()]
        paper = [tuple(_printed(entry, over, metric) for metric in pair) for over in columns.values()]
        lines += _with_paper(Line((entry.group, entry.name), tuple(cells)), paper)
    title = " / ".join(TITLES[metric] for metric in pair) + suffix
    return Table(title, ("group", "method"), tuple(columns), _marked(lines), (tuple(pair),) * len(columns))


def data_set_table(rows: Sequence[Row], suffix: str = "") -> Table:
    """Table 5: a line a method, a column a metric, the means of the data sets side by side in a cell."""
    data_sets = {
        name: [row for row in rows if row.data_set == name] for name in dict.fromkeys(r.data_set for r in rows)
    }
    everything = {name: frozenset(row.category for row in of_set) for name, of_set in data_sets.items()}
    lines = []
    for entry, of_entry in _entries(rows):
        parts = {name: [row for row in of_entry if row.data_set == name] for name in data_sets}
        cells = [tuple(_value(parts[name], everything[name], metric) for name in parts) for metric in METRICS]
        paper = [tuple(_printed(entry, everything[name], metric) for name in parts) for metric in METRICS]
        lines += _with_paper(Line((entry.group, entry.name), tuple(cells)), paper)
    title = " / ".join(data_sets) + ", means over categories" + suffix
    columns = tuple(TITLES[metric] for metric in METRICS)
    return Table(title, ("group", "method"), columns, _marked(lines), tuple((m,) * len(data_sets) for m in METRICS))


def ablation_tables(rows: Sequence[Row], suffix: str = "") -> list[Table]:
    """Table 6 for each method with variants, one category after another: score, change, and the paper's change.

    What the paper says of no variant of a method is left out.
    """
    tables = []
    for method in in_order({row.method for row in rows if row.variant}):
        of_method = [row for row in rows if row.method == method and row.variant]
        variants = list(dict.fromkeys(row.variant for row in of_method))
        variants.sort(key=lambda name: name == FULL)
        by_variant = {variant: [row for row in of_method if row.variant == variant] for variant in [*variants, FULL]}
        paper = {variant: tuple(_paper_change(method, variant, metric) for metric in METRICS) for variant in variants}
        in_paper = any(change for changes in paper.values() for change in changes)
        lines = []
        for category, over in _columns(of_method).items():
            full = [_value(by_variant[FULL], over, metric) for metric in METRICS]
            for variant in variants:
                found = [_value(by_variant[variant], over, metric) for metric in METRICS]
                changes = tuple(_minus(a, b) if variant != FULL else None for a, b in zip(found, full, strict=True))
                parts = (found, changes, *([paper[variant]] if in_paper else []))
                signs = [_signs(changes, paper[variant])] if in_paper else []
                lines.append(Line((category, variant, *signs), tuple(zip(*parts, strict=True))))
        shown = ["score", f"change against {FULL}", *(["the paper's change"] if in_paper else [])]
        title = f"Ablations of {METHODS.paper(method).name}: {' / '.join(shown)}{suffix}"
        columns = tuple(TITLES[metric] for metric in METRICS)
        labels = ("category", "variant", *(["signs as in the paper"] if in_paper else []))
        metrics = tuple((metric,) * len(shown) for metric in METRICS)
        tables.append(Table(title, labels, columns, tuple(lines), metrics))
    return tables


def row_name(row: Row) -> str:
    """What a method is called in tables, with the variant it was run in."""
    name = methods.row_name(row.method, row.scores.get("settings", {}).get("method", {}))
    return f"{name}, {row.variant}" if row.variant else name


def _entries(rows: Sequence[Row]) -> list[tuple[Entry, list[Row]]]:
    """Rows by line, in the paper's order of groups, CFRG last as in the paper."""
    lines: dict[Entry, list[Row]] = defaultdict(list)
    for row in rows:
        lines[Entry(METHODS.paper(row.method).group, row_name(row), row.method, row.variant)].append(row)
    order = in_order({entry.method for entry in lines})
    return sorted(lines.items(), key=lambda item: order.index(item[0].method))


def in_order(methods: Iterable[str]) -> list[str]:
    """Keys of methods by the paper's groups, CFRG last as in the paper."""
    known = list(METHODS)
    return sorted(methods, key=lambda m: (m == "cfrg", GROUPS.index(METHODS.paper(m).group), known.index(m)))


def _columns(rows: Sequence[Row]) -> dict[str, frozenset[str]]:
    """The categories that each column is over, by its head: one, as the paper abbreviates it, or all for the mean."""
    categories = sorted({row.category for row in rows})
    heads = {_abbreviated(name): frozenset([name]) for name in categories}
    return {**heads, MEAN: frozenset(categories)} if len(categories) > 1 else heads


def _abbreviated(category: str) -> str:
    known = DATASETS["3cad"].find(category)
    return known.abbreviation if known else category


def _value(rows: Sequence[Row], categories: frozenset[str], metric: str) -> Value | None:
    """Mean and spread over seeds of the mean over categories; None unless some seed has been run on all of them."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        score = row.scores.get(metric)
        if row.category in categories and score is not None:
            by_seed[row.seed].append(100 * score)
    complete = [statistics.fmean(scores) for scores in by_seed.values() if len(scores) == len(categories)]
    if not complete:
        return None
    return Value(statistics.fmean(complete), statistics.stdev(complete) if len(complete) > 1 else None)


def _printed(entry: Entry, categories: frozenset[str], metric: str) -> Value | None:
    """The paper's number for a cell; it knows one form of each method."""
    if entry.variant not in ("", FULL):
        return None
    (name, *others) = categories
    printed = None if others else printed_score(entry.method, name, metric)
    printed = printed_mean(entry.method, categories, metric) if printed is None else printed
    return None if printed is None else Value(printed)


def _with_paper(ours: Line, paper: Sequence[Cell]) -> list[Line]:
    """Our line; where the paper prints a number that we have too, also the paper's line and the difference."""
    differences = tuple(
        tuple(_minus(a, b) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(ours.cells, paper, strict=True)
    )
    if not any(value for cell in differences for value in cell):
        return [ours]
    blank = ("",) * (len(ours.labels) - 1)
    return [
        ours,
        Line((*blank, "paper"), tuple(paper), "paper"),
        Line((*blank, "difference"), differences, "difference"),
    ]


def _minus(a: Value | None, b: Value | None) -> Value | None:
    return None if a is None or b is None else Value(a.mean - b.mean, signed=True)


def _paper_change(method: str, variant: str, metric: str) -> Value | None:
    printed = ablations()
    if method != "cfrg" or variant == FULL or (variant, metric) not in printed:
        return None
    return Value(printed[variant, metric] - printed[FULL, metric], signed=True)


def _signs(ours: Sequence[Value | None], paper: Sequence[Value | None]) -> str:
    """How many of the paper's changes have our sign; a change that prints as 0.0 has none."""
    pairs = [(a.mean, b.mean) for a, b in zip(ours, paper, strict=True) if a is not None and b is not None]
    agree = sum(round(a, 1) * round(b, 1) > 0 for a, b in pairs)
    return f"{agree} of {len(pairs)}" if pairs else ""


def _marked(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with the best of our values marked in each column; all that print alike, where several do."""
    ours = [line.cells for line in lines if line.kind == "ours"]
    best = [[_best([cells[c][part] for cells in ours]) for part in range(len(ours[0][c]))] for c in range(len(ours[0]))]
    return tuple(replace(line, cells=_with_best(line.cells, best)) if line.kind == "ours" else line for line in lines)


def _best(values: Sequence[Value | None]) -> float | None:
    """The highest value as printed; None where there is nothing to compare."""
    found = [round(value.mean, 1) for value in values if value is not None]
    return max(found) if len(found) > 1 else None


def _with_best(cells: Sequence[Cell], best: Sequence[Sequence[float | None]]) -> tuple[Cell, ...]:
    return tuple(
        tuple(value and value._replace(best=round(value.mean, 1) == top) for value, top in zip(cell, tops, strict=True))
        for cell, tops in zip(cells, best, strict=True)
    )
