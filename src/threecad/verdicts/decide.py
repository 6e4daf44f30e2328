"""From a score to OK, REVIEW or NG, with a reason, and with the promise in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from threecad.verdicts.areas import Region, regions
from threecad.verdicts.bounds import FEWEST_PARTS, Budget, Interval, Limit, limit, rejects_to_come, share_of
from threecad.verdicts.good import GoodScores, good_share
from threecad.verdicts.looks import plausible
from threecad.verdicts.lots import score_alike
from threecad.verdicts.settings import VerdictSettings, write_verdict

Word = Literal["OK", "REVIEW", "NG"]


class Verdict(NamedTuple):
    """What becomes of a part, and why; an OK needs no reason."""

    word: Word
    reason: str = ""


class Judged(NamedTuple):
    """All that is said of one image."""

    verdict: Verdict
    good_share: float | None  # None without good parts to compare with
    regions: list[Region]  # at the image's own size, highest peak first


class Limits(NamedTuple):
    """The three thresholds of a category."""

    review: Limit  # of scores
    reject: Limit  # of scores, never below `review`
    region: Limit  # of map values


class Escapes(NamedTuple):
    """Of defective samples, what each threshold lets pass, as shares with Clopper–Pearson intervals."""

    n: int
    passed: Interval  # called OK
    not_rejected: Interval  # called OK or REVIEW


class Kept(NamedTuple):
    """What further good parts make of the promise."""

    n: int
    rejected: Interval  # their share that is NG
    p_value: float  # of scores that differ as much from the known ones, if all parts are of one kind


@dataclass(frozen=True)
class Verdicts:
    """What a run says of parts: its good parts' scores, and the budgets asked for. Immutable, safe to share."""

    good: GoodScores
    settings: VerdictSettings = field(default_factory=VerdictSettings)
    distrust: str = ""  # why the good parts' scores say nothing here, such as another precision; then all is REVIEW

    def with_budgets(self, **budgets: Any) -> Verdicts:
        """The same good parts with other budgets, from which other thresholds follow; None leaves one as it is.

        Raises:
            SettingsError: a value that does not fit.
        """
        return replace(self, settings=self.settings.changed(**budgets))

    def limits(self, category: str | None = None) -> Limits:
        """The thresholds of a category; of the only one where none is named.

        Raises:
            SettingsError: fewer than `FEWEST_PARTS` good parts, an unknown category, or several and none is named.
        """
        name = self.good.category(category)
        return self._limits.get(name) or self._learn(name)

    @cached_property
    def _limits(self) -> dict[str, Limits]:
        return {name: self._learn(name) for name in self._judged}

    def can_judge(self, category: str | None = None) -> bool:
        """Whether there are enough good parts, scored as parts are scored here, to say OK or NG."""
        return not self.distrust and len(self.good.of(category)) >= FEWEST_PARTS

    @property
    def _judged(self) -> list[str]:
        """Categories with enough good parts."""
        return [name for name in self.good.categories if len(self.good.of(name)) >= FEWEST_PARTS]

    def _learn(self, category: str) -> Limits:
        asked, scores = self.settings, self.good.scores(category)
        peaks = self.good.peaks(category, asked.least_area_px)
        return Limits(limit(scores, asked.review), limit(scores, asked.reject), limit(peaks, asked.region))

    def judge(
        self,
        score: float,
        anomaly_map: np.ndarray,
        size: tuple[int, int] | None = None,
        category: str | None = None,
        doubt: str | None = None,
    ) -> Judged:
        """Verdict, share and regions of one image.

        Args:
            anomaly_map: (h, w), as the network gave it.
            size: height and width of the image, which regions are scaled to; of its map without.
            doubt: why the picture cannot be trusted, such as what the method `doubt` says.

        Raises:
            SettingsError: an unknown category, or several and none is named.
        """
        if not np.isfinite(anomaly_map).all():
            doubt = doubt or "the map is not finite"
        found = self.regions(anomaly_map, category, size) if self.can_judge(category) else []
        return Judged(self.decide(score, category, doubt), self.good_share(score, category), found)

    def decide(self, score: float, category: str | None = None, doubt: str | None = None) -> Verdict:
        """The verdict on a part of this score, the highest of its images'.

        Whatever cannot be judged is REVIEW, never OK.

        Args:
            doubt: why its picture cannot be trusted, such as what the method `doubt` says.
        """
        if doubt or self.distrust:
            return Verdict("REVIEW", doubt or self.distrust)
        if not math.isfinite(score):
            return Verdict("REVIEW", "the score is not finite")
        n = len(self.good.of(category))
        if n < FEWEST_PARTS:
            return Verdict("REVIEW", f"only {n} good parts to compare with")
        limits = self.limits(category)
        if score > limits.reject.threshold:
            return Verdict("NG", self._rank(score, category))
        if score > limits.review.threshold:
            return Verdict("REVIEW", self._rank(score, category))
        return Verdict("OK")

    def doubt(self, pixels: np.ndarray, category: str | None = None) -> str | None:
        """Why the image (H, W, 3) uint8, at its own size, cannot be a picture of a part; None where it can."""
        looks = self.good.looks.get(self.good.category(category))
        return plausible(pixels, looks) if looks else None

    def good_share(self, score: float, category: str | None = None) -> float | None:
        """Share of good parts that score at least as high; None without any."""
        scores = self.good.scores(category)
        return good_share(score, scores) if len(scores) and not self.distrust else None

    def regions(
        self, anomaly_map: np.ndarray, category: str | None = None, size: tuple[int, int] | None = None
    ) -> list[Region]:
        """Areas of the map (h, w) that good parts do not have, scaled to the image's `size`.

        Raises:
            SettingsError: as `limits`.
        """
        return regions(anomaly_map, self.limits(category).region.threshold, self.settings.least_area_px, size)

    def rejects_to_come(self, category: str | None = None, parts: int = 1000) -> Interval:
        """How many of the next `parts` good ones will be rejected."""
        return rejects_to_come(self.limits(category).reject, parts)

    def escapes(self, defect_scores: list[float] | np.ndarray, category: str | None = None) -> Escapes:
        """How many of these defective parts are let through; a score that is not finite is not let through."""
        scores, limits = np.asarray(defect_scores, dtype=np.float64), self.limits(category)
        finite = np.isfinite(scores)
        passed, kept = (int(np.sum(finite & (scores <= one.threshold))) for one in (limits.review, limits.reject))
        n, confidence = len(scores), self.settings.confidence
        return Escapes(n, share_of(passed, n, confidence), share_of(kept, n, confidence))

    def kept(self, good_scores: Sequence[float] | np.ndarray, category: str | None = None) -> Kept:
        """How many of these further good parts are rejected, and whether they score as the known ones do."""
        scores, limit = np.asarray(good_scores, dtype=np.float64), self.limits(category).reject
        rejected = share_of(int(np.sum(scores > limit.threshold)), len(scores), self.settings.confidence)
        return Kept(len(scores), rejected, score_alike(scores, self.good.scores(category)))

    def as_toml(self) -> str:
        """The text of `verdict.toml`: the budgets, and for readers the thresholds with n and promise."""
        tables = {name: _as_table(limits) for name, limits in self._limits.items()}
        return write_verdict(self.settings, self.good.stamp, tables)

    def sentences(self, category: str | None = None) -> list[str]:
        """The promise in words: a line for NG, one for REVIEW, one for regions."""
        review, reject, region = self.limits(category)
        least = self.settings.least_area_px
        return [
            promise(reject, "are rejected"),
            promise(review, "are rejected or set aside"),
            promise(region, "have any region" if least == 1 else f"have any region of at least {least} px"),
        ]

    def summary(self) -> list[str]:
        """A line a category: how many good parts may be rejected, or that nothing can be said."""
        lines = []
        for name in self.good.parts:
            said = self.distrust or f"{len(self.good.of(name))} good parts to compare with"
            said = self.sentences(name)[0] if self.can_judge(name) else f"Every part is REVIEW: {said}."
            lines.append(f"{name}: {said}" if len(self.good.parts) > 1 else said)
        return lines

    def _rank(self, score: float, category: str | None) -> str:
        scores = self.good.scores(category)
        above = int(np.sum(scores >= score))
        return f"scores above {f'all but {above}' if above else 'all'} of {len(scores)} good parts"


def promise(limit: Limit, what: str = "are rejected") -> str:
    """What a threshold promises, in a sentence that is never too good: "Of good parts like these 214, at most …"."""
    budget = limit.budget
    many = per_cent(limit.promised, up=True)
    if budget.rule == "average":
        said = f"Of good parts like these {limit.n}, {many} {what} on average over calibrations"
    else:
        said = f"Of good parts like these {limit.n}, at most {many} {what}, with {confidence_words(budget)}"
    if limit.is_met:
        return f"{said}."
    return f"{said}; {limit.missing} more {'is' if limit.missing == 1 else 'are'} needed for {per_cent(budget.share)}."


def confidence_words(budget: Budget) -> str:
    """`95 % confidence`."""
    return f"{100 * budget.confidence:g} % confidence"


def per_cent(share: float, up: bool = False) -> str:
    """`1.4 %`: two significant digits, rounded up where it must not be less than it is."""
    value = 100 * share
    if up and value > 0:
        unit = 10.0 ** (math.floor(math.log10(value)) - 1)
        value = unit * math.ceil(value / unit - 1e-9)
    return f"{value:.2g} %" if value < 99.5 else f"{value:.3g} %"


def with_interval(share: Interval) -> str:
    """`5 % (0.61 % to 17 %)`."""
    return f"{per_cent(share.value)} ({per_cent(share.low)} to {per_cent(share.high, up=True)})"


def _as_table(limits: Limits) -> dict[str, Any]:
    table: dict[str, Any] = {"n": limits.reject.n}
    for name, one in zip(limits._fields, limits, strict=True):
        table[f"{name}_above"] = one.threshold
        table[f"{name}_promised"] = round(one.promised, 6)
    return table
