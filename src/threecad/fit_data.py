"""The good images of a fit: read, some kept aside, and what they are known by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threecad.data.loading import Progress, Rows, content_hashes, load_frames
from threecad.data.readers import Category, exclude, fingerprint, read_categories
from threecad.data.roi import mean_colour, read_region
from threecad.errors import DataError
from threecad.framing import Framing, Tiles
from threecad.images import Decoding, decoding_of, image_size, limit_of
from threecad.methods import METHODS
from threecad.records import Sample
from threecad.settings import Settings

SAME_SHAPE = 0.02
"""Logarithm of the ratio of two aspects that count as one: a pixel or two of cropping."""


@dataclass(frozen=True)
class FitData:
    """The good images of a fit."""

    categories: list[Category]
    learnt: list[Sample]
    held_out: list[Sample]
    fingerprint: str
    sizes: list[tuple[int, int]]  # of the learnt images as they are on disk, height and width
    decoding: Decoding

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
        everything = [sample for category in self.categories for sample in (*category.train, *category.validation)]
        pack = load_frames(everything, framing, progress, self.decoding)
        chosen = {sample.image for sample in samples}
        wanted = np.array([index for index, one in enumerate(everything) if one.image in chosen], dtype=np.int64)
        count = pack.shape[1]
        rows = (wanted[:, None] * count + np.arange(count)).ravel()
        return Rows(pack.reshape(-1, *pack.shape[2:]), rows, framing.inside(self.sizes[0]))


def read_fit_data(method: str, root: Path, names: Sequence[str], settings: Settings) -> FitData:
    """The good images that a method learns from, and those kept aside.

    Raises:
        DataError: no category, several for a method that learns one, one without good images, or one not in order.
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
    learnt: list[Sample] = []
    held_out: list[Sample] = []
    for category in categories:
        if category.validation:
            kept, aside = list(category.train), list(category.validation)
        else:
            kept, aside = hold_out(category.train, settings.data.holdout, settings.training.seed)
        learnt += kept
        held_out += aside
    hashes = dict(zip([s.image for s in learnt], content_hashes([s.image for s in learnt]), strict=True))
    decoding = decoding_of(settings.data.model_dump())
    limit = limit_of(decoding)
    sizes = [image_size(sample.image, **limit) for sample in learnt]
    prints = fingerprint(learnt, hashes.__getitem__)
    return FitData(categories, learnt, held_out, prints, sizes, decoding)


def framing_of(settings: Settings, data: FitData) -> Framing:
    """What of a part the network is to see, by the settings' region of interest and tiles.

    Raises:
        DataError: a region that covers nothing or is not the images' size, tiles larger than an image.
    """
    chosen, size = settings.data, settings.method.image_size
    tiles = None
    if chosen.tiles is not None or chosen.tile_px is not None:
        tiles = Tiles(chosen.tiles, chosen.tile_px, chosen.tile_overlap, chosen.whole)
        tiles.boxes(data.sizes[0])
    region = None
    if chosen.roi is not None:
        region = read_region(chosen.roi)
        for sample, own in zip(data.learnt, data.sizes, strict=True):
            try:
                region.at(own)
            except DataError as error:
                raise DataError(f"{sample.image}: {error}") from None
        region = replace(region, fill=mean_colour(data.learnt, region, size))
    return Framing(size, region, tiles)


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from, and a random `share` of them kept aside; at least two are learnt from."""
    count = min(round(share * len(samples)), max(len(samples) - 2, 0))
    aside = set(np.random.default_rng([seed, len(samples)]).permutation(len(samples))[:count].tolist())
    kept = [sample for index, sample in enumerate(samples) if index not in aside]
    return kept, [sample for index, sample in enumerate(samples) if index in aside]


def listed_exclusions(file: Path | None) -> list[str]:
    """The image paths of an exclusion list, with forward slashes."""
    lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
    paths = [line.strip().replace("\\", "/").removeprefix("./") for line in lines]
    return [path for path in paths if path and not path.startswith("#")]
