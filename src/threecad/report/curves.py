"""Curves and histograms as SVG paths in a square of `PLOT` units."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

BINS = 28
PLOT = 100.0  # side of a drawing in its own units
MOST_POINTS = 200  # of a training curve; neighbours are averaged beyond


def roc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, 2) false and true positive rates, from (0, 0) to (1, 1), a point for each distinct score."""
    false, true = _positives(scores, labels)
    return np.stack([false / max(false[-1], 1), true / max(true[-1], 1)], axis=1)


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, 2) recall and precision, a point for each distinct score, the highest first."""
    false, true = (counts[1:] for counts in _positives(scores, labels))
    return np.stack([true / max(true[-1], 1), true / (true + false)], axis=1)


def _positives(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives, beginning with none, as the threshold falls past each distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = labels[order].astype(int)
    return tuple(np.concatenate([[0], np.cumsum(one)[last]]) for one in (1 - hits, hits))  # type: ignore[return-value]


def histogram(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Bars of good and defective parts by score, on a logarithmic axis where scores span more than a factor of 20."""
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high > 20 * low
    scale = np.log if is_log else np.asarray
    start, stop = float(scale(low)), float(scale(high))
    stop = stop if stop > start else start + 1
    counts = [np.histogram(scale(values[which]), BINS, (start, stop))[0] for which in (~labels, labels)]
    tallest = max(int(count.max()) for count in counts)
    bars = [[PLOT * int(count) / tallest for count in one] for one in counts]
    return {
        "good": bars[0],
        "defect": bars[1],
        "width": PLOT / BINS,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "is_log": is_log,
        "tallest": tallest,
    }


def curve_path(points: np.ndarray) -> str:
    """SVG path of points in the unit square, the vertical axis upwards."""
    return "M" + "L".join(f"{PLOT * x:.2f},{PLOT * (1 - y):.2f}" for x, y in points)


def training_curves(log: Path) -> list[dict[str, Any]]:
    """For each phase trained by gradient, its loss terms over its steps, on one logarithmic axis.

    Args:
        log: metrics.csv of a fit; without the file there are no curves.
    """
    if not log.is_file():
        return []
    phases: dict[str, dict[str, list[float]]] = {}
    with log.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            phases.setdefault(row["phase"], {}).setdefault(row["term"], []).append(float(row["value"]))
    return [_training_curve(phase, terms) for phase, terms in phases.items()]


def _training_curve(phase: str, terms: dict[str, list[float]]) -> dict[str, Any]:
    smooth = {name: _thinned(np.array(values)) for name, values in terms.items()}
    positive = np.concatenate([values[values > 0] for values in smooth.values()])
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 1.0)
    start, stop = math.log(low), max(math.log(high), math.log(low) + 1e-9)
    paths = {}
    for name, values in smooth.items():
        heights = (np.log(values.clip(min=low)) - start) / (stop - start)
        paths[name] = curve_path(np.stack([np.linspace(0, 1, len(values)), heights], axis=1))
    steps = max(len(values) for values in terms.values())
    return {"phase": phase, "steps": steps, "paths": paths, "low": f"{low:.3g}", "high": f"{high:.3g}"}


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` means of neighbours."""
    return np.array([part.mean() for part in np.array_split(values, min(len(values), MOST_POINTS))])
