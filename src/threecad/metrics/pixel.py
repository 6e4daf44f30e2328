"""Pixel metrics, exact and in bounded memory.

AUROC, AP, F1-max and PRO change only at the scores of *defect* pixels. A first pass over the maps collects those, each
with the weight 1/|region|; their distinct values are the edges. A second pass counts all pixels below and on every
edge, batch by batch: sorted, then searched. All minus defect pixels leaves the normal ones. The result equals that of
sorting every pixel of the data set; memory grows with the defect pixels only. Threads add integers, so that neither
their number nor their order shows in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from threecad.errors import MetricError
from threecad.metrics.image import Ranking
from threecad.metrics.reading import as_map, as_mask, copied, pairs, release_pages, require_reiterable
from threecad.regions import label_regions
from threecad.threads import ordered, thread_count

PRO_LIMIT = 0.3
"""False-positive rate up to which PRO counts."""

PRO_THRESHOLDS = 200
"""Thresholds an image in the paper's P-PRO."""

BATCH_PIXELS = 1 << 22
"""Pixels that are sorted together; larger is less searching, smaller is less memory."""

BLOCK_EDGES = 1 << 18
"""Edges that are searched together, for the same reason."""


@dataclass(frozen=True, slots=True)
class PixelScores:
    """What the maps of a set of images are worth; fractions in [0, 1]."""

    p_auroc: float  # chance that a defect pixel outscores a normal one, a tie counting half
    p_ap: float  # average precision, step-wise
    p_pro: float  # per-region overlap, pooled over all images, up to a false-positive rate of 0.3
    p_pro_per_image: float  # the paper's P-PRO, image by image; NaN if every image was skipped
    p_f1_max: float  # largest F1 over all thresholds
    n_regions: int  # 8-connected defect regions
    n_skipped_per_image: int  # images with a defect that have no curve of their own, see `p_pro_per_image`


def pixel_scores(
    maps: Iterable[Any],
    masks: Iterable[Any],
    *,
    left_out_of_pro: Sequence[bool] | None = None,
    threads: int | None = None,
) -> PixelScores:
    """Pixel AUROC, AP, F1-max and both P-PROs of raw anomaly `maps` against `masks`, one of each an image.

    `maps` and `masks` are gone through more than once: lists, arrays (N, H, W), memory-mapped files, or objects whose
    `__iter__` starts anew. Every item is (H, W), the two of an image of equal shape; a mask pixel is a defect where it
    is > 0 (bool, 0/1 and 0/255 alike). `left_out_of_pro` (N,) marks images that take no part in `p_pro`, neither with
    regions nor with normal pixels: those whose defect vanished from the mask when it was resized.

    Definitions (equal scores always fall on the same side of a threshold, so that order never matters):

    - `p_auroc`, `p_ap`, `p_f1_max`: over all pixels of all images together. AP is Σ (Rₙ - Rₙ₋₁) Pₙ. A constant map
      gives an AUROC of 0.5 and an AP equal to the share of defect pixels.
    - `p_pro`: at every distinct score as threshold, the mean over all 8-connected regions of the share of the region
      that lies at or above it, over the false-positive rate of all normal pixels. From (0, 0), trapezoids, straight
      interpolation at 0.3, divided by 0.3. A constant map gives 0.15.
    - `p_pro_per_image`: for each image with a defect, the thresholds min + k·(max - min)/200 of its own map for
      k = 0 … 199 in float64, pixels positive when strictly above. Of the points (FPR, mean overlap) those with
      FPR < 0.3 are kept and their FPR is divided by the largest; the trapezoid area between the smallest and the
      largest is the image's, their mean the result. Skipped and counted in `n_skipped_per_image`: an image without a
      normal pixel (full mask), and a curve that keeps one point only, or none with FPR > 0 to divide by (a constant
      map, but also normal pixels so alike that no threshold parts them).
    - An empty mask adds normal pixels and no region, and has no part in `p_pro_per_image`; a full mask adds one region
      and no normal pixel.

    Raises:
        MetricError: a one-shot iterator; unequal lengths or shapes; a missing mask; a value that is not finite; no
            defect pixel or no normal pixel in the whole set; a mask that is not empty in an image left out of PRO.
    """
    require_reiterable(maps, "maps")
    require_reiterable(masks, "masks")
    threads = threads or thread_count()
    survey = _survey(maps, masks, threads)
    left_out = _checked_flags(left_out_of_pro, survey)
    if not survey.defects:
        raise MetricError(f"pixel metrics need defect pixels, found none in {survey.n_images} masks")
    scores = np.concatenate([defect.scores for defect in survey.defects]).astype(survey.dtype, copy=False)
    weights = np.concatenate([defect.weights for defect in survey.defects])
    n_regions = sum(defect.n_regions for defect in survey.defects)
    areas = [defect.pro for defect in survey.defects]
    survey.defects.clear()
    if scores.size == survey.n_pixels:
        raise MetricError(f"pixel metrics need normal pixels, found none: all {survey.n_images} masks are full")

    order = np.argsort(scores)
    scores, weights = scores[order], weights[order]
    del order
    first = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    edges, weights_at = scores[first], np.add.reduceat(weights, first)
    positives_at = np.diff(first, append=scores.size)
    del scores, weights, first
    in_pro, everywhere = _rank(maps, edges, positives_at, left_out, survey, threads)

    if not in_pro.n_negatives:
        raise MetricError("P-PRO needs normal pixels, found none outside the images that are left out of it")
    per_image = [area for area in areas if area is not None]
    return PixelScores(
        p_auroc=everywhere.auroc(),
        p_ap=everywhere.average_precision(),
        p_pro=in_pro.area(weights_at / n_regions, PRO_LIMIT),
        p_pro_per_image=math.fsum(per_image) / len(per_image) if per_image else math.nan,
        p_f1_max=everywhere.f1_max(),
        n_regions=n_regions,
        n_skipped_per_image=len(areas) - len(per_image),
    )


# First pass: the defect pixels.


class _Defect(NamedTuple):
    """What one image with a defect contributes."""

    image: int  # its position
    scores: np.ndarray  # (D,) of its defect pixels
    weights: np.ndarray  # (D,) 1/|region|
    n_regions: int
    pro: float | None  # the image's own P-PRO; None where it has no curve


@dataclass(slots=True)
class _Survey:
    """What the first pass has seen."""

    n_images: int = 0
    n_pixels: int = 0
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))  # holds the values of every map exactly
    defects: list[_Defect] = field(default_factory=list)


def _survey(maps: Iterable[Any], masks: Iterable[Any], threads: int) -> _Survey:
    survey = _Survey()

    def defective() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for index, (given_map, given_mask) in enumerate(pairs(maps, masks)):
            anomaly_map, mask = as_map(index, given_map), as_mask(index, given_mask)
            if anomaly_map.shape != mask.shape:
                found = f"{anomaly_map.shape} and {mask.shape} at image {index}"
                raise MetricError(f"expected a map and a mask of one shape, found {found}")
            survey.n_images += 1
            survey.n_pixels += mask.size
            survey.dtype = np.result_type(survey.dtype, anomaly_map.dtype)
            if mask.any():
                yield index, copied(index, anomaly_map), mask
            release_pages(given_mask)

    survey.defects.extend(ordered(lambda arguments: _examine(*arguments), defective(), ahead=threads, threads=threads))
    return survey


def _examine(index: int, anomaly_map: np.ndarray, mask: np.ndarray) -> _Defect:
    labels, n_regions = label_regions(mask)
    region = labels[mask] - 1
    weights = (1.0 / np.bincount(region))[region]
    scores = anomaly_map[mask]
    return _Defect(index, scores, weights, n_regions, _pro_of_image(anomaly_map, scores, weights, n_regions))


def _pro_of_image(anomaly_map: np.ndarray, scores: np.ndarray, weights: np.ndarray, n_regions: int) -> float | None:
    """The paper's P-PRO of one image, or None where it has no curve; see `pixel_scores`."""
    n_normal = anomaly_map.size - scores.size
    if n_normal == 0:
        return None
    pixels = np.sort(anomaly_map, axis=None)
    low, high = float(pixels[0]), float(pixels[-1])
    thresholds = low + np.arange(PRO_THRESHOLDS) * (high - low) / PRO_THRESHOLDS
    n_above = pixels.size - np.searchsorted(pixels, thresholds, "right")
    # A defect pixel is strictly above its first so many thresholds; it counts at each of them.
    n_below = np.searchsorted(thresholds, scores, "left")
    defect_above = _sums_above(np.bincount(n_below, minlength=PRO_THRESHOLDS + 1))
    overlap = _sums_above(np.bincount(n_below, weights, minlength=PRO_THRESHOLDS + 1)) / n_regions
    fpr = (n_above - defect_above) / n_normal
    kept = fpr < PRO_LIMIT
    fpr, overlap = fpr[kept][::-1], overlap[kept][::-1]  # ascending
    if fpr.size < 2 or fpr[-1] == 0:
        return None
    return min(float(np.trapezoid(overlap, fpr / fpr[-1])), 1.0)  # rounded sums can leave it by a last digit


def _sums_above(counts: np.ndarray) -> np.ndarray:
    """At position k, the sum of all `counts` after k."""
    return np.cumsum(counts[:0:-1])[::-1]


# Second pass: all pixels at the edges.


class _Counts:
    """How many of `n_pixels` pixels lie below each edge (E,), and how many not above it; any thread may add some."""

    def __init__(self, edges: np.ndarray) -> None:
        self.edges = edges
        self.below = np.zeros(edges.size, np.int64)
        self.not_above = np.zeros(edges.size, np.int64)
        self.n_pixels = 0
        self._lock = Lock()

    def add(self, pixels: np.ndarray) -> None:
        """Count `pixels`, an array that is sorted in place."""
        pixels.sort()
        for start in range(0, self.edges.size, BLOCK_EDGES):
            block = slice(start, start + BLOCK_EDGES)
            edges = self.edges[block]
            below = np.searchsorted(pixels, edges, "left")
            # Few edges are tied with a pixel of this batch; only they need the second search.
            tied = np.flatnonzero(pixels[np.minimum(below, pixels.size - 1)] == edges)
            n_tied = np.searchsorted(pixels, edges[tied], "right") - below[tied]
            with self._lock:
                self.below[block] += below
                self.not_above[block] += below
                self.not_above[start + tied] += n_tied
        with self._lock:
            self.n_pixels += pixels.size

    def merge(self, other: _Counts) -> None:
        self.below += other.below
        self.not_above += other.not_above
        self.n_pixels += other.n_pixels

    def ranking(self, positives_at: np.ndarray) -> Ranking:
        """The ranking of the pixels that are no defect, where `positives_at` (E,) of them are."""
        positives_from = np.cumsum(positives_at[::-1])[::-1]
        n_positives = int(positives_from[0])
        return Ranking(
            positives_at=positives_at,
            negatives_above=(self.n_pixels - self.not_above) - (positives_from - positives_at),
            negatives_from=(self.n_pixels - self.below) - positives_from,
            n_positives=n_positives,
            n_negatives=self.n_pixels - n_positives,
        )


def _rank(
    maps: Iterable[Any],
    edges: np.ndarray,
    positives_at: np.ndarray,
    left_out: np.ndarray,
    survey: _Survey,
    threads: int,
) -> tuple[Ranking, Ranking]:
    """The ranking of the pixels of the images that take part in P-PRO, and that of all pixels."""
    counts, counts_left_out = _Counts(edges), _Counts(edges)

    def count(batch: tuple[bool, np.ndarray]) -> None:
        is_left_out, pixels = batch
        (counts_left_out if is_left_out else counts).add(pixels)

    for _ in ordered(count, _batches(maps, left_out, survey.dtype), ahead=threads, threads=threads):
        pass
    if (found := counts.n_pixels + counts_left_out.n_pixels) != survey.n_pixels:
        raise MetricError(
            f"expected the same maps every time they are gone through, found {survey.n_pixels} pixels, then {found}"
        )
    # Images left out have no defect pixels, so that all of those are to be taken off the others' counts.
    in_pro = counts.ranking(positives_at)
    if not left_out.any():
        return in_pro, in_pro
    counts.merge(counts_left_out)
    return in_pro, counts.ranking(positives_at)


def _batches(maps: Iterable[Any], left_out: np.ndarray, dtype: np.dtype) -> Iterator[tuple[bool, np.ndarray]]:
    """Pixels of many maps in one array, and whether they are of images left out of P-PRO."""
    waiting: dict[bool, list[np.ndarray]] = {False: [], True: []}
    n_waiting = {False: 0, True: 0}
    for index, given in enumerate(maps):
        is_left_out = bool(left_out[index : index + 1].any())
        batch = waiting[is_left_out]
        batch.append(copied(index, as_map(index, given)).ravel())
        n_waiting[is_left_out] += batch[-1].size
        if n_waiting[is_left_out] >= BATCH_PIXELS:
            yield is_left_out, np.concatenate(batch, dtype=dtype)
            batch.clear()
            n_waiting[is_left_out] = 0
    for is_left_out, batch in waiting.items():
        if batch:
            yield is_left_out, np.concatenate(batch, dtype=dtype)


def _checked_flags(left_out_of_pro: Sequence[bool] | None, survey: _Survey) -> np.ndarray:
    if left_out_of_pro is None:
        return np.zeros(survey.n_images, bool)
    left_out = np.asarray(left_out_of_pro, bool)
    if left_out.shape != (survey.n_images,):
        raise MetricError(f"expected {survey.n_images} flags in left_out_of_pro, found shape {left_out.shape}")
    for defect in survey.defects:
        if left_out[defect.image]:
            raise MetricError(
                f"expected an empty mask in an image left out of P-PRO, found {defect.scores.size} defect pixels "
                f"at image {defect.image}; only images whose defect vanished are left out"
            )
    return left_out
