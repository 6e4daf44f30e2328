"""Image metrics, and the ranking from which image and pixel metrics are read off.

A threshold between two positive scores only adds false positives, so that every metric here is known from what
happens at the distinct *positive* scores: how many positives and negatives lie above each and on it. Scores are
compared as they are, without sigmoid, clamping or bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from threecad.errors import MetricError
from threecad.metrics.reading import as_array


@dataclass(frozen=True, slots=True)
class ImageScores:
    """What the scores of a set of images are worth; fractions in [0, 1]."""

    i_auroc: float  # chance that a defective image outscores a good one, a tie counting half
    i_ap: float  # average precision, step-wise
    i_f1_max: float  # largest F1 over all thresholds
    fpr_at_95_tpr: float  # share of good images rejected where at least 95 % of the defective ones are caught


def image_scores(scores: ArrayLike, labels: ArrayLike) -> ImageScores:
    """Image AUROC, AP, F1-max and FPR at 95 % TPR of raw `scores` (N,), with `labels` (N,) 1 or True for a defect.

    An image counts as positive when its score is at or above the threshold; equal scores are caught or missed
    together, so that the order of the images never matters. One score for all images gives an AUROC of 0.5 and an AP
    equal to the share of defective images.

    Raises:
        MetricError: other shapes, labels other than 0 and 1, a score that is not finite, or images of one class only.
    """
    values, truth = as_array(scores), as_array(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise MetricError(f"expected as many scores (N,) as labels (N,), found {values.shape} and {truth.shape}")
    if values.dtype.kind not in "biuf":
        raise MetricError(f"expected scores that are numbers, found the type {values.dtype}")
    for position in np.flatnonzero(~np.isfinite(values)):
        raise MetricError(f"expected finite scores, found {values[position]} at position {position}")
    if truth.dtype.kind not in "biuf" or not ((truth == 0) | (truth == 1)).all():
        raise MetricError("expected labels 0 (good) and 1 (defect), found other values")
    is_defect = truth == 1
    positives, negatives = np.sort(values[is_defect]), np.sort(values[~is_defect])
    if not positives.size or not negatives.size:
        raise MetricError(
            "image metrics need good and defective images, "
            f"found {negatives.size} good and {positives.size} defective; add the missing class to the test set"
        )
    edges, n_at = np.unique(positives, return_counts=True)
    ranking = Ranking(
        positives_at=n_at,
        negatives_above=negatives.size - np.searchsorted(negatives, edges, "right"),
        negatives_from=negatives.size - np.searchsorted(negatives, edges, "left"),
        n_positives=positives.size,
        n_negatives=negatives.size,
    )
    return ImageScores(ranking.auroc(), ranking.average_precision(), ranking.f1_max(), ranking.fpr_at_tpr(95))


@dataclass(frozen=True, slots=True)
class Ranking:
    """How negatives lie among positives, told at the E distinct positive scores in ascending order."""

    positives_at: np.ndarray  # (E,) positives with exactly this score
    negatives_above: np.ndarray  # (E,) negatives with a higher score
    negatives_from: np.ndarray  # (E,) negatives with this score or a higher one
    n_positives: int
    n_negatives: int

    def positives_from(self) -> np.ndarray:
        """(E,) positives with this score or a higher one: the true positives of that threshold."""
        return np.cumsum(self.positives_at[::-1])[::-1]

    def auroc(self) -> float:
        """Area under TPR over FPR: P(positive > negative) + ½ P(positive = negative)."""
        return self.area(self.positives_at / self.n_positives)

    def average_precision(self) -> float:
        """Σ (Rₙ - Rₙ₋₁) Pₙ over the distinct scores: steps, never a trapezoid."""
        found = self.positives_from()
        precision = found / (found + self.negatives_from)
        return _fraction(np.dot(self.positives_at, precision) / self.n_positives)

    def f1_max(self) -> float:
        """The largest 2 TP / (P + TP + FP) over all thresholds."""
        found = self.positives_from()
        return _fraction(np.max(2 * found / (self.n_positives + found + self.negatives_from)))

    def fpr_at_tpr(self, percent: int) -> float:
        """The smallest FPR of a threshold that catches at least `percent` % of the positives."""
        caught = 100 * self.positives_from() >= percent * self.n_positives  # integers: 19 of 20 are 95 %
        return _fraction(self.negatives_from[np.flatnonzero(caught)[-1]] / self.n_negatives)

    def area(self, weights: np.ndarray, limit: float = 1.0) -> float:
        """Area between FPR 0 and `limit` under a curve that rises by `weights` (E,), divided by `limit`.

        The curve starts in (0, 0), has a point for every distinct score of positives and negatives, and straight lines
        between them. It rises only at positive scores: by `weights[e]` while the FPR goes from `negatives_above[e]`
        to `negatives_from[e]` (straight up where no negative is tied). Its area is the sum of the areas under these
        ramps, each of which goes on at its full height to the limit.
        """
        start = np.minimum(self.negatives_above / self.n_negatives, limit)
        stop = self.negatives_from / self.n_negatives
        reached = np.minimum(stop, limit)
        ramp = reached - start  # its part below the limit
        stop -= start
        share = np.divide(ramp, stop, out=np.ones_like(ramp), where=stop > 0)  # of its height
        return _fraction(np.dot(weights, share * ramp / 2 + (limit - reached)) / limit)


def _fraction(value: float) -> float:
    """A Python float in [0, 1]; sums of rounded terms can leave it by a last digit."""
    return min(max(float(value), 0.0), 1.0)
