"""Whether good parts score alike, of different lots or of another day; where not, no bound on some holds for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from threecad.verdicts.good import GoodPart

USUAL = 0.95
"""Quantile of the other lots' parts that a lot's own are held against."""


class Lot(NamedTuple):
    """One lot beside all others."""

    name: str
    n: int  # parts
    median: float  # of their scores
    highest: float
    above_others: float  # share of its parts that score above 95 % of the other lots' parts; about 0.05 where alike


class Lots(NamedTuple):
    """All lots, and how likely it is that such differences come by chance."""

    rows: list[Lot]
    p_value: float  # Kruskal–Wallis; below 0.01 the lots are hardly alike


UNLIKE = 0.01
"""Chance below which a difference is told as one."""


def score_alike(scores: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> float:
    """How likely ranks as different as these are among parts of one kind: Mann–Whitney, two-sided; 1 without any."""
    if len(scores) == 0 or len(others) == 0:
        return 1.0
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(scores, others).pvalue)


def compare_lots(parts: Sequence[GoodPart]) -> Lots | None:
    """How the lots of some good parts compare; None where there are fewer than two."""
    by_lot: dict[str, list[float]] = {}
    for part in parts:
        if part.lot is not None:
            by_lot.setdefault(part.lot, []).append(part.score)
    if len(by_lot) < 2:
        return None
    from scipy.stats import kruskal

    rows = []
    for name, scores in sorted(by_lot.items()):
        others = np.concatenate([other for lot, other in by_lot.items() if lot != name])
        above = float(np.mean(np.array(scores) > np.quantile(others, USUAL, method="higher")))
        rows.append(Lot(name, len(scores), float(np.median(scores)), max(scores), above))
    all_alike = len({score for scores in by_lot.values() for score in scores}) == 1
    return Lots(rows, 1.0 if all_alike else float(kruskal(*by_lot.values()).pvalue))
