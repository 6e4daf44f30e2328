"""Tables written down: Markdown for a page, LaTeX for an article, CSV for a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from threecad.benchmark.rows import Row
from threecad.benchmark.tables import Table, Value, all_tables, in_order, row_name
from threecad.errors import SettingsError, did_you_mean

LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "×": r"$\times$", "~": r"\textasciitilde{}"}
)


def write_tables(rows: Sequence[Row], format: str = "markdown") -> str:
    """All tables of the rows, as `markdown`, `latex` or `csv`.

    Raises:
        SettingsError: another format.
    """
    if format not in FORMATS:
        raise SettingsError(f"unknown format '{format}'{did_you_mean(format, FORMATS)}")
    return FORMATS[format](rows)


def markdown(rows: Sequence[Row]) -> str:
    """Every table under its title, then how the rows came about."""
    return "\n".join([*(_markdown_table(table) for table in all_tables(rows)), provenance(rows)])


def latex(rows: Sequence[Row]) -> str:
    r"""A `table` for every table, for `\usepackage{booktabs}`."""
    return "\n".join(_latex_table(table) for table in all_tables(rows)).rstrip()


def comma_separated(rows: Sequence[Row]) -> str:
    """A line a number: table, labels, column, metric, value and spread in per cent, whether it is the best."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "label", "kind", "column", "metric", "value", "std", "best"])
    for table in all_tables(rows):
        name = ""
        for line in table.lines:
            name = " ".join(filter(None, line.labels)) if line.kind == "ours" else name
            for column, cell, metrics in zip(table.columns, line.cells, table.metrics, strict=True):
                for value, metric in zip(cell, metrics, strict=True):
                    if value is not None:
                        std = "" if value.std is None else f"{value.std:.4f}"
                        kind = "change" if value.signed and line.kind == "ours" else line.kind
                        best = int(value.best)
                        writer.writerow([table.title, name, kind, column, metric, f"{value.mean:.4f}", std, best])
    return text.getvalue().rstrip()


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {"markdown": markdown, "csv": comma_separated, "latex": latex}


def provenance(rows: Sequence[Row]) -> str:
    """How each line came about: what a reader needs to run it again, or to doubt it."""
    facts: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "preset": lambda s: s["preset"],
        "but for": lambda s: _departures(s.get("departures")),
        "steps": lambda s: s["steps"],
        "backbone": lambda s: s["backbone"] or "–",
        "image": lambda s: "×".join(map(str, s["image_size"])),
        "precision": lambda s: s["precision"],
        "textures": lambda s: s["texture_source"] or "–",
        "seeds": lambda s: s["seed"],
    }
    lines = [["method", *facts, "fit, s", "defects vanished"]]
    lines.append(["---"] * len(lines[0]))
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row_name(row), []).append(row)
    order = in_order({row.method for row in rows})
    for name in sorted(by_name, key=lambda name: order.index(by_name[name][0].method)):
        scores = [row.scores for row in by_name[name]]
        seconds = sorted(s["duration_s"] for s in scores)
        vanished = sum({row.category: row.scores["n_vanished"] for row in by_name[name]}.values())  # each seed sees all
        span = f"{seconds[0]:.0f}–{seconds[-1]:.0f}"
        lines.append([name, *(_joined(map(fact, scores)) for fact in facts.values()), span, str(vanished)])
    scores = [row.scores for row in rows]
    met = _joined("×".join(map(str, s["evaluation_size"])) for s in scores)
    chosen = {"last": "Last step, no selection on test images.", "best_on_test": "Epoch chosen on the test images."}
    selection = " ".join(dict.fromkeys(chosen.get(row.selection, row.selection) for row in rows))
    machine = _joined(f"{s['hardware']}, {s['threads']} threads, {_versions(s)}" for s in scores)
    return f"{_rows_of_markdown(lines)}\n\n{selection} Maps and masks met at {met}. {machine}."


def _departures(settings: Sequence[str] | None) -> str:
    """In which settings a row is not the preset's, without those that have a column; `?` where a row does not know."""
    if settings is None:
        return "?"
    shown = ("method.backbone", "method.weights")
    return " ".join(setting.partition(".")[2] for setting in settings if setting not in shown) or "–"


def _markdown_table(table: Table) -> str:
    lines = [[*table.labels, *table.columns], ["---"] * len(table.labels) + ["---:"] * len(table.columns)]
    for line in table.lines:
        labels = [f"*{label}*" if label and line.kind != "ours" else label for label in line.labels]
        lines.append([*labels, *(_cell(cell, "**{}**".format, "±") for cell in line.cells)])
    return f"**{table.title}** (per cent)\n\n{_rows_of_markdown(lines)}\n"


def _latex_table(table: Table) -> str:
    lines = [[*table.labels, *table.columns]]
    for line in table.lines:
        cells = [_cell(cell, r"\textbf{{{}}}".format, r"$\pm$").replace("−", "$-$") for cell in line.cells]
        lines.append([*(label.translate(LATEX) for label in line.labels), *cells])
    head, *body = [
        " & ".join(words if number else [w.translate(LATEX) for w in words]) + r" \\"
        for number, words in enumerate(lines)
    ]
    form = "l" * len(table.labels) + "r" * len(table.columns)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{table.title.translate(LATEX)} (\%)}}",
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cell(cell: Sequence[Value | None], bold: Callable[[str], str], plus_minus: str) -> str:
    """`a / b`, each with its spread; empty where nothing was run."""
    if all(value is None for value in cell):
        return ""
    return " / ".join("–" if value is None else _number(value, bold, plus_minus) for value in cell)


def _number(value: Value, bold: Callable[[str], str], plus_minus: str) -> str:
    text = f"{value.mean:+z.1f}".replace("-", "−") if value.signed else f"{value.mean:.1f}"
    text = "0.0" if text == "+0.0" else text  # a change that rounds to nothing has no sign
    text = bold(text) if value.best else text
    return text if value.std is None else f"{text} {plus_minus} {value.std:.1f}"


def _versions(scores: Mapping[str, Any]) -> str:
    return f"ThreeCAD {scores['version']}, torch {scores['libraries']['torch']}"


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _rows_of_markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
