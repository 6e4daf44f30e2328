"""Good parts' scores as dots with both thresholds, as an SVG text that stands by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from threecad.verdicts.bounds import Limit
from threecad.verdicts.decide import Limits, per_cent

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, BASE = 24, 696, 252  # px: where the axis begins, ends and stands
ROOM = 150  # px: height of the tallest column of dots
COLUMNS = 84
GOOD, DEFECT, REVIEW, REJECT, INK = "#2b7a4b", "#7a2f6f", "#b7791f", "#b3392f", "#333333"


def scores_plot(
    good: Sequence[float] | np.ndarray, limits: Limits, defects: Sequence[float] | np.ndarray = (), title: str = ""
) -> str:
    """An SVG with a dot a part, stacked where scores are alike, and a line at each threshold with what it promises.

    The axis is logarithmic where all scores are positive and span more than a factor of 20.
    """
    known, bad = np.asarray(good, np.float64), np.asarray(defects, np.float64)
    bad = bad[np.isfinite(bad)]
    everything = np.concatenate([known, bad])
    low, high = float(everything.min()), float(everything.max())
    scaled = np.log if low > 0 and high > 20 * low else np.asarray

    def place(score: float) -> float:
        start, stop = scaled(low), scaled(high)
        return float(LEFT + (RIGHT - LEFT) * (scaled(score) - start) / ((stop - start) or 1.0))

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        *_legend(len(known), len(bad)),
        *_dots([(known, GOOD), (bad, DEFECT)], place),
        f'<path d="M{LEFT} {BASE}H{RIGHT}" stroke="{INK}"/>',
        f'<text x="{LEFT}" y="{BASE + 18}">{low:.3g}</text>',
        f'<text x="{RIGHT}" y="{BASE + 18}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{BASE + 36}" text-anchor="middle">'
        f"anomaly score{' (logarithmic)' if scaled is np.log else ''}</text>",
        *_line(place(limits.reject.threshold), 62, REJECT, "NG", limits.reject),
        *_line(place(limits.review.threshold), 80, REVIEW, "REVIEW", limits.review),
        "</svg>",
    ]
    return "\n".join(drawn) + "\n"


def _legend(good: int, defects: int) -> list[str]:
    entries = [(GOOD, f"{good} good parts")] + ([(DEFECT, f"{defects} defective samples")] if defects else [])
    return [
        f'<circle cx="{LEFT + 4 + 140 * index}" cy="36" r="4" fill="{colour}"/>'
        f'<text x="{LEFT + 14 + 140 * index}" y="40">{text}</text>'
        for index, (colour, text) in enumerate(entries)
    ]


def _dots(shown: list[tuple[np.ndarray, str]], place: Callable[[float], float]) -> list[str]:
    """Each dot at its score, on top of those of about the same one; good parts below."""
    step = (RIGHT - LEFT) / COLUMNS
    columns: dict[int, list[tuple[float, str]]] = {}
    for scores, colour in shown:
        for x in map(place, np.sort(scores)):
            columns.setdefault(int((x - LEFT) / step), []).append((x, colour))
    rise = min(step, ROOM / max(len(column) for column in columns.values()))
    return [
        f'<circle cx="{x:.1f}" cy="{BASE - step / 2 - rise * height:.1f}" r="{0.4 * step:.1f}" fill="{colour}"/>'
        for column in columns.values()
        for height, (x, colour) in enumerate(column)
    ]


def _line(x: float, y: int, colour: str, word: str, limit: Limit) -> list[str]:
    """A threshold from its label down to the axis; the label lies on the side that has room."""
    share = per_cent(limit.promised, up=True)
    promised = f"on average {share}" if limit.budget.rule == "average" else f"at most {share}"
    side, anchor = (6, "start") if x < (LEFT + RIGHT) / 2 else (-6, "end")
    return [
        f'<path d="M{x:.1f} {y - 10}V{BASE}" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 3"/>',
        f'<text x="{x + side:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}">'
        f"{word} above {limit.threshold:.4g}: {promised} of good parts</text>",
    ]
