"""The good images of a fit: read, divided by parts, and what they are known by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from threecad import groups
from threecad.data.hashes import Progress, content_hashes
from threecad.data.loading import Rows, load_frames
from threecad.data.readers import Category, exclude, fingerprint, read_categories
from threecad.data.roi import mean_colour, read_region
from threecad.errors import DataError, SettingsError
from threecad.framing import Framing, Tiles
from threecad.images import Decoding, decoding_of, image_size, limit_of
from threecad.methods import METHODS
from threecad.records import Sample
from threecad.registration import FEWEST, NOWHERE_ELSE, PARTS, GoldenPart, Offset, register
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


SAME_SHAPE = 0.02
"""Logarithm of the ratio of two aspects that count as one: a pixel or two of cropping."""


@dataclass(frozen=True)
class FitData:
    """The good images of a fit."""

    categories: list[Category]
    learnt: list[Sample]
    held_out: list[Sample]
    fingerprint: str
    known: Mapping[Path, GoodImage]  # every good image
    scoring: Scoring
    sizes: list[tuple[int, int]]  # of the learnt images as they are on disk, height and width
    decoding: Decoding

    @property
    def every(self) -> list[Sample]:
        """All good images."""
        return [sample for category in self.categories for sample in (*category.train, *category.validation)]

    def shape(self, notify: Callable[[str], None]) -> tuple[float, float]:
        """The median shape of the learnt images, as height and width; says where they are not all alike."""
        aspects = np.log([height / width for height, width in self.sizes])
        if np.ptp(aspects) > SAME_SHAPE:
            low, high = np.exp(aspects.min()), np.exp(aspects.max())
            notify(f"the parts differ in shape (height/width {low:.2f} to {high:.2f}): all get the median one")
        return float(np.exp(np.median(aspects))), 1.0

    def pixels(self, samples: Sequence[Sample], framing: Framing, progress: Progress | None) -> Rows:
        """What a network sees of some of the good images: rows of the pack of all, frame after frame.

        The pack is that of all good images, so that another hold-out decodes nothing anew.
        """
        everything = self.every
        pack = load_frames(everything, framing, progress, self.decoding)
        chosen = {sample.image for sample in samples}
        wanted = np.array([index for index, one in enumerate(everything) if one.image in chosen], dtype=np.int64)
        count = pack.shape[1]
        rows = (wanted[:, None] * count + np.arange(count)).ravel()
        return Rows(pack.reshape(-1, *pack.shape[2:]), rows, framing.inside(self.sizes[0]), count)

    def offsets(self, samples: Sequence[Sample], framing: Framing) -> list[Offset]:
        """How far the parts of some of the good images lie off the golden one."""
        if framing.golden is None:
            return [NOWHERE_ELSE] * len(samples)
        pictures = self.pixels(samples, Framing(framing.golden.size), None)
        return [framing.golden.offset(pixels) for pixels in pictures]

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
    images = [sample.image for category in categories for sample in (*category.train, *category.validation)]
    hashes = dict(zip(images, content_hashes(images, progress), strict=True))
    found: dict[Path, GoodImage] = {}
    for category in categories:
        found |= _know(category, hashes, settings)
    scoring = _scoring(method, settings, found)
    if scoring == "left out" and any(category.validation for category in categories):
        scoring = "hold-out"  # somebody has set good parts aside already
    learnt: list[Sample] = []
    held_out: list[Sample] = []
    for category in categories:
        samples = (*category.train, *category.validation)
        if category.validation and scoring == "hold-out":
            aside = np.arange(len(samples)) >= len(category.train)
        else:
            aside = _kept_aside([found[sample.image].part for sample in samples], scoring, settings)
        for sample, out in zip(samples, aside, strict=True):
            (held_out if out else learnt).append(sample)
    decoding = decoding_of(settings.data.model_dump())
    limit = limit_of(decoding)
    sizes = [image_size(sample.image, **limit) for sample in learnt]
    prints = fingerprint(learnt, hashes.__getitem__)
    return FitData(categories, learnt, held_out, prints, found, scoring, sizes, decoding)


def golden_part_of(
    settings: Settings, data: FitData, progress: Progress | None = None
) -> tuple[GoldenPart | None, list[str]]:
    """The golden part that parts are to be laid upon, None where they stay where they lie, and why, a sentence.

    Raises:
        DataError: it was asked for, with too few good parts or several categories.
    """
    asked = settings.data.registration
    if not asked:
        return None, []
    several = len(data.categories) > 1
    if several or len(data.learnt) < FEWEST:
        if asked == "auto":
            return None, []
        there = f"{len(data.categories)} categories" if several else f"{len(data.learnt)} good images"
        raise DataError(
            f"setting 'data.registration': expected one category with at least {FEWEST} good images to learn from, "
            f"found {there}"
        )
    pictures = data.pixels(data.learnt, Framing(settings.method.image_size), progress)
    found = register(pictures[np.linspace(0, len(pictures) - 1, min(len(pictures), PARTS)).astype(int)])
    share = f"{100 * max(found.share, 0):.0f} %"
    if asked == "auto" and not found.is_worthwhile:
        return None, [f"parts are compared as they lie: laid upon each other they would differ by {share} less"]
    height, width = (f"{100 * reach:.1f} %" for reach in found.golden.reach)
    return found.golden, [
        f"parts are laid upon a golden part, on which good ones differ by {share} less; "
        f"they are looked for up to {height} of the height and {width} of the width off it"
    ]


def framing_of(settings: Settings, data: FitData, golden: GoldenPart | None = None) -> Framing:
    """What of a part the network is to see, by the settings' region of interest and tiles.

    Raises:
        DataError: a region that covers nothing or is not the images' size, tiles larger than an image.
    """
    chosen, size = settings.data, settings.method.image_size
    region = None
    if chosen.roi is not None:
        region = read_region(chosen.roi, data.decoding)
        for sample, own in zip(data.learnt, data.sizes, strict=True):
            try:
                region.at(own)
            except DataError as error:
                raise DataError(f"{sample.image}: {error}") from None
        region = replace(region, fill=mean_colour(data.learnt, region, size, data.decoding))
    framing = Framing(size, region, Tiles.of(chosen.model_dump()), golden)
    framing.boxes(data.sizes[0])  # tiles that are too large are refused here
    return framing


def _know(category: Category, hashes: Mapping[Path, str], settings: Settings) -> dict[Path, GoodImage]:
    """Part, lot and fold of each good image of a category; without `data.part`, images of one content are one part."""
    samples = (*category.train, *category.validation)
    paths = [category.path_in_root(sample.image) for sample in samples]
    names = [image_name(hashes[sample.image]) for sample in samples]
    parts = groups.groups(paths, settings.data.part, "part") if settings.data.part else names
    lots = groups.groups(paths, settings.data.lot, "lot") if settings.data.lot else [None] * len(paths)
    count = settings.training.folds
    folds = groups.folds(parts, count, settings.training.seed) if count else np.zeros(len(parts), int)
    known = zip(samples, names, parts, lots, folds, strict=True)
    return {sample.image: GoodImage(name, part, lot, int(fold)) for sample, name, part, lot, fold in known}


def _scoring(method: str, settings: Settings, known: Mapping[Path, GoodImage]) -> Scoring:
    """What was asked for; else the closed form, if the method has one and a part one image; else a hold-out."""
    in_tiles = settings.data.tiles is not None or settings.data.tile_px is not None
    if settings.training.folds:
        if in_tiles:  # each fold's maps would be in units of its own
            raise SettingsError("setting 'training.folds': expected none with tiles; use data.holdout")
        return "folds"
    if settings.data.holdout:
        return "hold-out"
    if METHODS[method].leaves_out and not in_tiles and len({image.part for image in known.values()}) == len(known):
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
