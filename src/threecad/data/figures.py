"""Fig. 3 of the paper: a histogram as a picture that is sharp at any size, and as the numbers behind it."""

from __future__ import annotations

import math
from pathlib import Path
from xml.sax.saxutils import escape

from threecad.data.statistics import Histogram, Statistics
from threecad.files import write_text

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 620, 50, 320  # of the field in which the bars stand


def write_figures(folder: Path, statistics: Statistics) -> list[Path]:
    """The files written: `area_ratio` and `aspect_ratio`, each as .svg and as .csv.

    Raises:
        FileError: a file cannot be written.
    """
    written = []
    for name in ("area_ratio", "aspect_ratio"):
        histogram: Histogram = getattr(statistics, name)
        lines = ["above,to,count,percent", *(",".join(row) for row in histogram.rows())]
        for suffix, text in ((".svg", draw(histogram)), (".csv", "\n".join(lines) + "\n")):
            write_text(folder / f"{name}{suffix}", text)
            written.append(folder / f"{name}{suffix}")
    return written


def draw(histogram: Histogram) -> str:
    """An SVG picture: a bar a bin, as high as its share of all, with its count above and its edges below."""
    rows = histogram.rows()
    highest = max(float(share) for *_, share in rows)
    tick_step = next(step for step in (2, 5, 10, 20) if highest <= 5 * step)
    ceiling = tick_step * max(1, math.ceil(highest / tick_step))
    step = (_RIGHT - _LEFT) / len(rows)
    parts = [_text(_WIDTH / 2, 28, histogram.heading, size=16)]
    for tick in range(0, ceiling + 1, tick_step):
        y = _BOTTOM - (_BOTTOM - _TOP) * tick / ceiling
        parts.append(f'<line x1="{_LEFT}" y1="{y:g}" x2="{_RIGHT}" y2="{y:g}" stroke="#ccc"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick} %", anchor="end"))
    for index, (low, high, count, share) in enumerate(rows):
        x, bar = _LEFT + step * (index + 0.1), (_BOTTOM - _TOP) * float(share) / ceiling
        parts.append(f'<rect x="{x:g}" y="{_BOTTOM - bar:g}" width="{0.8 * step:g}" height="{bar:g}" fill="#3b6ea5"/>')
        parts.append(_text(x + 0.4 * step, _BOTTOM - bar - 5, count))
        edges = f"over {low}" if high == "inf" else f"{low}–{high}"
        parts.append(_text(x + 0.4 * step, _BOTTOM + 20, edges, turned=True))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "middle", turned: bool = False) -> str:
    turn = f' transform="rotate(-35 {x:g} {y:g})"' if turned else ""
    anchor = "end" if turned else anchor
    halo = 'stroke="white" stroke-width="4" stroke-linejoin="round" paint-order="stroke"'  # above lines, too
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" {halo}{turn}>{escape(words)}</text>'
