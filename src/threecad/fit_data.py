"""The good images of a fit: read, divided by parts, and what they are known by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from threecad import groups
from threecad.data.loading import Progress, Rows, content_hashes, load_images
from threecad.data.tree import Category, exclude, fingerprint, read_categories
from threecad.errors import DataError
from threecad.methods import METHODS
from threecad.records import Sample
from threecad.settings import Settings
from threecad.verdicts import FEWEST_PARTS, Budget, VerdictSettings, image_name, parts_needed

Scoring = Literal["hold-out", "folds", "left out", "none"]
"""By which models good parts are scored: one of the other parts; one of the other folds; the model itself, in closed
form as if it had not learnt from the part; or not at all."""

USUAL_SHARE = 1 / 3
"""Of good parts that is kept aside where nothing else is asked for."""


@dataclass(frozen=True)
class GoodImage:
    """What the tool knows of a good image besides its pixels."""

    name: str  # of its content, `image_name`
    part: str
    lot: str | None
    fold: int  # 0, 1, … of `training.folds`


@dataclass(frozen=True)
class FitData:
    """The good images of a fit."""

    categories: list[Category]
    learnt: list[Sample]
    held_out: list[Sample]
    fingerprint: str
    known: Mapping[Path, GoodImage]  # every good image
    scoring: Scoring

    @property
    def every(self) -> list[Sample]:
        """All good images."""
        return [sample for category in self.categories for sample in category.train]

    def pixels(self, samples: Sequence[Sample], size: tuple[int, int], progress: Progress | None) -> Rows:
        """Rows of the pack of all good images, so that another hold-out decodes nothing anew."""
        everything = self.every
        chosen = {sample.image for sample in samples}
        wanted = [index for index, sample in enumerate(everything) if sample.image in chosen]
        return Rows(load_images(everything, size, progress), np.array(wanted, dtype=np.int64))

    def without_fold(self, fold: int) -> tuple[list[Sample], list[Sample]]:
        """The good images of all folds but one, and those of that one."""
        inside = [self.known[sample.image].fold == fold for sample in self.every]
        others = [sample for sample, within in zip(self.every, inside, strict=True) if not within]
        return others, [sample for sample, within in zip(self.every, inside, strict=True) if within]


def read_fit_data(
    method: str, root: Path, names: Sequence[str], settings: Settings, progress: Progress | None = None
) -> FitData:
    """The good images that a method learns from, and those kept aside.

    Args:
        progress: called while files are read for the first time.

    Raises:
        DataError: no category, several for a method that learns one, one without good images, or one not in order;
            fewer parts than folds, or a pattern that does not find every image's part.
        SettingsError: a pattern that is no regular expression.
    """
    categories = read_categories(root, names)
    if METHODS[method].scope == "category" and len(categories) > 1:
        known = ", ".join(category.name for category in categories)
        raise DataError(
            f"'{method}' learns one category at a time, found {len(categories)} in {root}:\n{known}\n"
            "Name one with --category, and fit each into its own --out."
        )
    for category in categories:
        if not category.train:
            raise DataError(f"category '{category.name}' in {root}: expected good images in train/good, found none")
    if settings.data.exclude is not None:
        categories = [exclude(category, settings.data.exclude) for category in categories]
    images = [sample.image for category in categories for sample in category.train]
    hashes = dict(zip(images, content_hashes(images, progress), strict=True))
    found: dict[Path, GoodImage] = {}
    for category in categories:
        found |= _know(category, hashes, settings)
    scoring = _scoring(method, settings, found)
    learnt: list[Sample] = []
    held_out: list[Sample] = []
    for category in categories:
        aside = _kept_aside([found[sample.image].part for sample in category.train], scoring, settings)
        for sample, out in zip(category.train, aside, strict=True):
            (held_out if out else learnt).append(sample)
    return FitData(categories, learnt, held_out, fingerprint(learnt, hashes.__getitem__), found, scoring)


def _know(category: Category, hashes: Mapping[Path, str], settings: Settings) -> dict[Path, GoodImage]:
    """Part, lot and fold of each good image of a category; without `data.part`, images of one content are one part."""
    paths = [category.path_in_root(sample.image) for sample in category.train]
    names = [image_name(hashes[sample.image]) for sample in category.train]
    parts = groups.groups(paths, settings.data.part, "part") if settings.data.part else names
    lots = groups.groups(paths, settings.data.lot, "lot") if settings.data.lot else [None] * len(paths)
    count = settings.training.folds
    folds = groups.folds(parts, count, settings.training.seed) if count else np.zeros(len(parts), int)
    known = zip(category.train, names, parts, lots, folds, strict=True)
    return {sample.image: GoodImage(name, part, lot, int(fold)) for sample, name, part, lot, fold in known}


def _scoring(method: str, settings: Settings, known: Mapping[Path, GoodImage]) -> Scoring:
    """What was asked for; else the closed form, if the method has one and a part one image; else a hold-out."""
    if settings.training.folds:
        return "folds"
    if settings.data.holdout:
        return "hold-out"
    if METHODS[method].leaves_out and len({image.part for image in known.values()}) == len(known):
        return "left out"
    return "none" if settings.data.holdout == 0 else "hold-out"


def _kept_aside(parts: Sequence[str], scoring: Scoring, settings: Settings) -> np.ndarray:
    """(N,) bool: which images of a category are kept aside."""
    if scoring != "hold-out":
        return np.zeros(len(parts), bool)
    n = len(set(parts))
    share = usual_holdout(n) / n if settings.data.holdout is None else settings.data.holdout
    return groups.hold_out(parts, share, settings.training.seed)


def usual_holdout(parts: int) -> int:
    """How many of so many good parts are kept aside where nothing else is asked for.

    A third; no more than the usual budget of rejects needs, no fewer than a threshold needs, and none of fewer than
    ten, which all are to be learnt from.
    """
    if parts < 2 * FEWEST_PARTS:
        return 0
    enough = parts_needed(Budget(VerdictSettings().reject_at))
    return min(max(round(USUAL_SHARE * parts), FEWEST_PARTS), enough)


def listed_exclusions(file: Path | None) -> list[str]:
    """The image paths of an exclusion list, with forward slashes."""
    lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
    paths = [line.strip().replace("\\", "/").removeprefix("./") for line in lines]
    return [path for path in paths if path and not path.startswith("#")]
