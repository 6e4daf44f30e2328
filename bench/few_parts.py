"""How well methods do with few good parts: I-AUROC and AP over the number of parts that they learn from.

    python bench/few_parts.py ROOT --categories magnetic_tile aluminium_sheet deep_pcb --out docs/few-parts.csv
        [--methods padim patchcore] [--parts 5 10 20 50 100] [--draws 3] [--picture docs/few-parts.svg]

Each draw is another choice of good parts, and the seed of the fit; after the given numbers come all parts. Every fit
and evaluation is the tool's own (`quick`, embedded backbone, no parts kept aside). A row is written as soon as it is
known, and what has a row is not done again. The picture is drawn from the rows alone. `padim-unshared` is PaDiM with
`method.shared = false`.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import threecad
from threecad.data.readers import read_category

COLUMNS = ("category", "method", "parts", "draw", "i_auroc", "p_ap", "fit_s")
COLOURS = {"padim": "#2b6c9b", "padim-unshared": "#9db8cc", "patchcore": "#2b7a4b", "cfrg": "#b3392f"}
METRICS = {"i_auroc": "I-AUROC", "p_ap": "AP of pixels"}
PANEL, GAP, LEFT, TOP = (300, 150), 56, 60, 56  # px


class Row(NamedTuple):
    """What one fit came to."""

    category: str
    method: str
    parts: int
    draw: int
    i_auroc: float
    p_ap: float
    fit_s: float


def main() -> None:
    asked = arguments()
    rows = read_rows(asked.out)
    done = {row[:4] for row in rows}
    for category in asked.categories:
        for method, parts, draw in wanted(asked, category):
            if (category, method, parts, draw) not in done:
                row = measured(asked.root, category, method, parts, draw)
                print(*row)
                append(asked.out, row)
    if asked.picture:
        asked.picture.write_text(picture(read_rows(asked.out)), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--categories", nargs="*", default=[])
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"])
    parser.add_argument("--parts", nargs="*", type=int, default=[5, 10, 20, 50, 100])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def wanted(asked: argparse.Namespace, name: str) -> Iterator[tuple[str, int, int]]:
    """Method, number of parts and draw of each fit; of all parts there is one choice, fitted once."""
    everything = len(read_category(asked.root, name).train)
    for parts in sorted({min(parts, everything) for parts in (*asked.parts, everything)}):
        for draw in range(asked.draws if parts < everything else 1):
            for method in asked.methods:
                yield method, parts, draw


def measured(root: Path, name: str, method: str, parts: int, draw: int) -> Row:
    """One fit on so many parts, and its evaluation."""
    category = read_category(root, name)
    left = np.random.default_rng(draw).permutation(len(category.train))[parts:]
    with tempfile.TemporaryDirectory() as folder:
        run, exclude = Path(folder) / "run", Path(folder) / "exclude.txt"
        paths = [category.path_in_root(category.train[index].image) for index in left]
        exclude.write_text("\n".join(paths), encoding="utf-8")
        method_name, _, unshared = method.partition("-")
        settings = {
            "data": {"exclude": exclude, "holdout": 0.0, "textures": "procedural"},
            "method": {"backbone": "embedded"} | ({"shared": False} if unshared else {}),
            "training": {"preset": "quick", "seed": draw},
        }
        threecad.fit(method_name, root, run, categories=[name], settings=settings)
        scores = threecad.evaluate(run, root, [name])
    return Row(name, method, parts, draw, round(scores["i_auroc"], 4), round(scores["p_ap"], 4), scores["duration_s"])


def read_rows(file: Path) -> list[Row]:
    """What is known already."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        kinds = (str, str, int, int, float, float, float)
        lines = [[line[column] for column in COLUMNS] for line in csv.DictReader(stream)]
        return [Row(*(kind(value) for kind, value in zip(kinds, line, strict=True))) for line in lines]


def append(file: Path, row: Row) -> None:
    is_new = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


def picture(rows: Sequence[Row]) -> str:
    """An SVG: a row of panels a set, a panel a metric, a line a method through its mean, a bar from least to most."""
    categories, methods = (
        list(dict.fromkeys(values)) for values in ([r.category for r in rows], [r.method for r in rows])
    )
    width, height = PANEL
    whole = (LEFT + len(METRICS) * (width + GAP), TOP + len(categories) * (height + GAP))
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]} {whole[1]}" font-family="sans-serif" '
        'font-size="12" fill="#333333">',
        f'<rect width="{whole[0]}" height="{whole[1]}" fill="#ffffff"/>',
    ]
    for index, method in enumerate(methods):
        x = LEFT + 150 * index
        drawn.append(f'<path d="M{x} 20h24" stroke="{COLOURS[method]}" stroke-width="2"/>')
        drawn.append(f'<text x="{x + 30}" y="24">{method}</text>')
    for line, category in enumerate(categories):
        for column, (metric, title) in enumerate(METRICS.items()):
            shown = [row for row in rows if row.category == category]
            corner = (LEFT + column * (width + GAP), TOP + line * (height + GAP))
            drawn += panel(shown, metric, f"{category}: {title}", corner)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def panel(rows: Sequence[Row], metric: str, title: str, corner: tuple[int, int]) -> Iterator[str]:
    """One metric over the number of parts, which is drawn logarithmically."""
    (left, top), (width, height) = corner, PANEL
    values, counts = [getattr(row, metric) for row in rows], sorted({row.parts for row in rows})
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    stretch = math.log(counts[-1] / counts[0]) or 1.0

    def place(parts: int, value: float) -> tuple[float, float]:
        across = math.log(parts / counts[0]) / stretch
        return left + width * across, top + height * (1 - (value - low) / ((high - low) or 1.0))

    yield f'<text x="{left}" y="{top - 8}" font-size="13">{title}</text>'
    yield f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbbbbb"/>'
    for value in (low, high):
        y = place(counts[0], value)[1] + 4
        yield f'<text x="{left - 4}" y="{y:.1f}" text-anchor="end">{100 * value:.0f} %</text>'
    for parts in counts:
        yield f'<text x="{place(parts, low)[0]:.1f}" y="{top + height + 16}" text-anchor="middle">{parts}</text>'
    for method in dict.fromkeys(row.method for row in rows):
        colour, points = COLOURS[method], []
        for parts in sorted({row.parts for row in rows if row.method == method}):
            found = [getattr(row, metric) for row in rows if (row.method, row.parts) == (method, parts)]
            points.append("{:.1f} {:.1f}".format(*place(parts, float(np.mean(found)))))
            (x, least), (_, most) = place(parts, min(found)), place(parts, max(found))
            yield f'<path d="M{x:.1f} {least:.1f}V{most:.1f}" stroke="{colour}"/>'
        yield f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'


if __name__ == "__main__":
    main()
