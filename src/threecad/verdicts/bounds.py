"""Thresholds among good parts' scores, and what can be promised of them: order statistics, no fitted density.

Put the threshold on the (k + 1)-th highest of n good parts' scores, so that k of them lie above. The share of *all*
good parts above it is then Beta(k + 1, n − k) for any continuous score, and smaller where scores are tied (Wilks 1941,
"Determination of sample sizes for setting tolerance limits"). Two rules read that distribution:

    bound      its quantile at the confidence asked for: the share stays below, in 95 of 100 calibrations
    average    its mean, (k + 1) / (n + 1): the share is that on average over calibrations, often more, often less

Everything assumes that the parts to come are like those whose scores these are (exchangeable), and that no model has
learnt from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from threecad.errors import SettingsError

Rule = Literal["bound", "average"]

FEWEST_PARTS = 5
"""Of fewer good parts no threshold is taken."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be asked of a threshold: at most this share of good parts above it."""

    share: float  # in (0, 1)
    confidence: float = 0.95  # in (0, 1); of the rule `bound`
    rule: Rule = "bound"


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold with what it promises. A part is beyond it when its score is strictly higher."""

    threshold: float
    n: int  # good parts
    above: int  # k: how many of them may lie above the threshold; fewer do where scores are tied
    promised: float  # the share of good parts above the threshold, by the budget's rule
    budget: Budget

    @property
    def is_met(self) -> bool:
        """Whether the promise is as low as the budget."""
        return self.promised <= self.budget.share

    @property
    def missing(self) -> int:
        """How many more good parts the budget needs; 0 where it is met."""
        return max(parts_needed(self.budget) - self.n, 0)


def limit(scores: Sequence[float] | np.ndarray, budget: Budget) -> Limit:
    """The lowest threshold that keeps the budget; with too few parts for it the highest score, with its true promise.

    Raises:
        SettingsError: a budget out of (0, 1), or fewer than `FEWEST_PARTS` good parts.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if len(ordered) < FEWEST_PARTS:
        raise SettingsError(
            f"a threshold needs the scores of at least {FEWEST_PARTS} good parts, found {len(ordered)}; "
            "calibrate with more of them"
        )
    promises = promised_shares(len(ordered), budget)
    above = max(int(np.searchsorted(promises, budget.share, side="right")) - 1, 0)
    return Limit(float(ordered[above]), len(ordered), above, float(promises[above]), budget)


@lru_cache(maxsize=64)
def promised_shares(n: int, budget: Budget) -> np.ndarray:
    """(n,) the share of good parts promised for thresholds that leave 0, 1, …, n − 1 of n good parts above; rising.

    Raises:
        SettingsError: a budget out of (0, 1).
    """
    _check(budget)
    above = np.arange(n)
    if budget.rule == "average":
        shares = (above + 1) / (n + 1)
    else:
        from scipy.special import betaincinv  # the quantile of a Beta distribution, without the weight of scipy.stats

        shares = betaincinv(above + 1, n - above, budget.confidence)
    shares.setflags(write=False)  # all callers share it
    return shares


def parts_needed(budget: Budget) -> int:
    """The smallest number of good parts whose highest score keeps the budget."""
    _check(budget)
    if budget.rule == "average":
        needed = 1 / budget.share - 1
    else:
        needed = math.log1p(-budget.confidence) / math.log1p(-budget.share)
    return max(math.ceil(needed - 1e-9), FEWEST_PARTS)  # rounding must not ask for one part more


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with the range in which it lies with some confidence."""

    value: float
    low: float
    high: float


def rejects_to_come(limit: Limit, parts: int = 1000) -> Interval:
    """How many of the next good `parts` will lie above the threshold: mean, and central range at the confidence.

    Over calibrations and parts together that number is beta-binomial, exactly.
    """
    from scipy.stats import betabinom

    among = betabinom(parts, limit.above + 1, limit.n - limit.above)
    low, high = among.interval(limit.budget.confidence)
    return Interval(float(among.mean()), float(low), float(high))


def share_of(count: int, n: int, confidence: float) -> Interval:
    """The share that `count` of `n` say of all, with its Clopper–Pearson interval; without any, from 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(confidence, method="exact")
    return Interval(count / n, float(interval.low), float(interval.high))


def _check(budget: Budget) -> None:
    for name in ("share", "confidence"):
        value = getattr(budget, name)
        if not 0 < value < 1:  # NaN is refused here too
            raise SettingsError(f"expected a {name} of good parts strictly between 0 and 1, found {value}")
