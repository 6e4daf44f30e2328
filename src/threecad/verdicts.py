"""How unusual a part is among good ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def good_share(score: float, good_scores: Sequence[float] | np.ndarray) -> float:
    """Share of good parts that score at least as high: (k + 1) / (n + 1), one-sided.

    A part that looks like any other good one gets about 0.5; 0.01 means that one good part in a hundred looks as odd.
    """
    k = int(np.sum(np.asarray(good_scores) >= score))
    return (k + 1) / (len(good_scores) + 1)
