"""The good images of a fit: read, some kept aside, and what they are known by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threecad.data.loading import Progress, Rows, content_hashes, load_images
from threecad.data.readers import Category, exclude, fingerprint, read_categories
from threecad.errors import DataError
from threecad.methods import METHODS
from threecad.records import Sample
from threecad.settings import Settings


@dataclass(frozen=True)
class FitData:
    """The good images of a fit."""

    categories: list[Category]
    learnt: list[Sample]
    held_out: list[Sample]
    fingerprint: str

    def pixels(self, samples: Sequence[Sample], size: tuple[int, int], progress: Progress | None) -> Rows:
        """Rows of the pack of all good images, so that another hold-out decodes nothing anew."""
        everything = [sample for category in self.categories for sample in category.train]
        chosen = {sample.image for sample in samples}
        wanted = [index for index, sample in enumerate(everything) if sample.image in chosen]
        return Rows(load_images(everything, size, progress), np.array(wanted, dtype=np.int64))


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
        kept, aside = hold_out(category.train, settings.data.holdout, settings.training.seed)
        learnt += kept
        held_out += aside
    hashes = dict(zip([s.image for s in learnt], content_hashes([s.image for s in learnt]), strict=True))
    return FitData(categories, learnt, held_out, fingerprint(learnt, hashes.__getitem__))


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
