"""What is known of the good parts: the score of each, by a model that has not learnt from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from threecad.errors import DataError, RunError, SettingsError, did_you_mean
from threecad.files import first_fault
from threecad.verdicts.areas import AREAS_PX, area_peaks, peak_of_area
from threecad.verdicts.looks import GoodLooks

FORMAT = 1
"""Version of the file of good parts; a reader refuses a newer one."""

Conditions = Mapping[str, str | int | float | bool | None]
"""What scores depend on, by name: weights, image size, region of interest, tiles, precision, backend."""


class GoodPart(BaseModel):
    """A good part as a model sees it that has not learnt from it; of several images, the highest values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: str
    score: float
    peaks: tuple[float, ...] = Field(min_length=len(AREAS_PX), max_length=len(AREAS_PX))  # see `areas.area_peaks`
    lot: str | None = None
    images: int = Field(default=1, ge=1)  # that show it

    @classmethod
    def seen(
        cls,
        part: str,
        score: float,
        anomaly_map: np.ndarray,
        lot: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Self:
        """A good part from one image's score and map (h, w).

        Args:
            size: height and width of the image; of its map without.

        Raises:
            DataError: either is not finite.
        """
        if not (math.isfinite(score) and np.isfinite(anomaly_map).all()):
            raise DataError(f"the score or map of good part '{part}' is not finite; the model is broken, fit anew")
        return cls(part=part, score=score, peaks=area_peaks(anomaly_map, size), lot=lot)


class GoodScores(BaseModel):
    """The good parts of each category, and the conditions under which they were looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    conditions: dict[str, str | int | float | bool | None] = {}
    parts: dict[str, tuple[GoodPart, ...]] = {}
    looks: dict[str, GoodLooks] = {}  # of the good images of each category, those that were learnt from included
    learnt: tuple[str, ...] = ()  # the images that the model has learnt from, by `image_name`: they cannot be added
    part: str | None = None  # the pattern that finds in an image's path which part it shows (`data.part`)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `model_dump_json` wrote it.

        Raises:
            RunError: not such a text, or of a newer version.
        """
        try:
            good = cls.model_validate_json(text)
        except ValidationError as error:
            raise RunError(f"good parts' scores cannot be read: {first_fault(error)}") from None
        if good.format > FORMAT:
            raise RunError(f"good parts' scores are of format {good.format}, this version reads {FORMAT}; upgrade")
        return good

    @property
    def stamp(self) -> str:
        """16 hexadecimal digits of the conditions: what a `verdict.toml` of this run carries."""
        return hashlib.sha256(json.dumps(self.conditions, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def sha256(self) -> str:
        """16 hexadecimal digits of everything that is known of the good parts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def categories(self) -> list[str]:
        """Names of the categories that have good parts."""
        return sorted(name for name, parts in self.parts.items() if parts)

    def category(self, name: str | None = None) -> str:
        """The name itself; of the only category where none is given, and empty where there is none.

        Scores of different categories are never pooled: each has its own scale.

        Raises:
            SettingsError: several categories and none is named, or an unknown one.
        """
        known = self.categories or (list(self.parts) if len(self.parts) == 1 else [])
        if name is None and len(known) > 1:
            raise SettingsError(
                f"the run learnt {len(known)} categories, each with its own thresholds; name one of {', '.join(known)}"
            )
        if name and self.parts and name not in self.parts:
            raise SettingsError(
                f"the run has learnt {', '.join(self.parts)} and says nothing of '{name}'"
                f"{did_you_mean(name, self.parts)}"
            )
        return name or (known[0] if known else "")

    def of(self, category: str | None = None) -> tuple[GoodPart, ...]:
        """The good parts of one category.

        Raises:
            SettingsError: as `category`.
        """
        return self.parts.get(self.category(category), ())

    def scores(self, category: str | None = None) -> np.ndarray:
        """(n,) float64, a score a part."""
        return np.array([part.score for part in self.of(category)], dtype=np.float64)

    def peaks(self, category: str | None = None, least_area_px: int = 1) -> np.ndarray:
        """(n,) float64: above which value a part's maps have no region of `least_area_px`."""
        return np.array([peak_of_area(part.peaks, least_area_px) for part in self.of(category)], dtype=np.float64)

    def fewest_images(self, category: str | None = None) -> int:
        """How many images every good part of a category has at least; 1 without any."""
        return min((part.images for part in self.of(category)), default=1)

    def joined(
        self,
        category: str,
        more: Iterable[GoodPart],
        conditions: Conditions,
        looks: GoodLooks | None = None,
    ) -> Self:
        """With further good parts; of a part that is here already the higher values stay, so that twice is as once.

        Args:
            looks: of the images of these parts.

        Raises:
            RunError: `conditions` are not those of the scores that are here, or a part is of two lots.
        """
        if self.categories:
            refuse_other_conditions(self.conditions, conditions, "the good parts' scores")
        parts = {**self.parts, category: _merged(self.parts.get(category, ()), joined_parts(more))}
        every = [one for one in (self.looks.get(category), looks) if one is not None]
        together = {**self.looks, category: GoodLooks.joined(every)} if every else self.looks
        return self.model_copy(update={"conditions": dict(conditions), "parts": parts, "looks": together})


def image_name(sha256: str) -> str:
    """What an image is known by, wherever it lies and whatever it is called: the start of its file's SHA-256."""
    return sha256[:16]


def joined_parts(images: Iterable[GoodPart]) -> tuple[GoodPart, ...]:
    """One entry a part, with the highest of its images' values; in the order in which parts first appear.

    Raises:
        RunError: images of one part are of two lots.
    """
    parts: dict[str, GoodPart] = {}
    for image in images:
        known = parts.get(image.part)
        parts[image.part] = image if known is None else _highest(known, image, known.images + image.images)
    return tuple(parts.values())


def _merged(known: Iterable[GoodPart], more: Iterable[GoodPart]) -> tuple[GoodPart, ...]:
    """Both; of a part that is in both, whose images may be the same ones, the higher values."""
    parts = {part.part: part for part in known}
    for part in more:
        before = parts.get(part.part)
        parts[part.part] = part if before is None else _highest(before, part, max(before.images, part.images))
    return tuple(parts.values())


def _highest(one: GoodPart, other: GoodPart, images: int) -> GoodPart:
    if one.lot != other.lot:
        raise RunError(f"part '{one.part}' is of two lots, '{one.lot}' and '{other.lot}'; mend data.lot")
    peaks = tuple(max(pair) for pair in zip(one.peaks, other.peaks, strict=True))
    return other.model_copy(update={"score": max(one.score, other.score), "peaks": peaks, "images": images})


def good_share(score: float, good_scores: Sequence[float] | np.ndarray) -> float:
    """Share of good parts that score at least as high: (k + 1) / (n + 1), one-sided; 1 for a score that is NaN.

    A part that looks like any other good one gets about 0.5. The smallest value is `smallest_share(n)`.
    """
    scores = np.asarray(good_scores, dtype=np.float64)
    return float((np.sum(~(scores < score)) + 1) / (len(scores) + 1))


def smallest_share(n: int) -> float:
    """What `good_share` gives a part that outscores all n good ones: 1 / (n + 1)."""
    return 1 / (n + 1)


def refuse_other_conditions(stamped: Conditions, here: Conditions, what: str) -> None:
    """Nothing, where `what` was learnt under the conditions that hold here.

    Raises:
        RunError: it was not; names each condition that differs.
    """
    differ = other_conditions(stamped, here)
    if differ:
        raise RunError(f"{what} are of other conditions: {differ}\nCalibrate under these, or go back to those.")


def other_conditions(stamped: Conditions, here: Conditions) -> str:
    """Each condition that differs, with both values; empty where none does."""
    differ = [name for name in sorted({*stamped, *here}) if stamped.get(name) != here.get(name)]
    return "; ".join(f"{name} was {stamped.get(name)}, is {here.get(name)}" for name in differ)
