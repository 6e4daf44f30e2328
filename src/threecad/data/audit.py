"""Everything that is wrong or odd in an image set, found in one pass over all its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from threecad.data.catalog import DATASETS, recognise
from threecad.data.readers import Category, check_sizes, list_categories, scan_category
from threecad.errors import DataError
from threecad.images import read_image, read_mask
from threecad.records import Sample, Split

THREADS = 2
SMALLEST_PX = 32  # below the smallest input of any method, an image is blown up before it is looked at


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # `fit` or `evaluate` would stop
    WARNING = "warning"  # they would run, and their result would mean something else than it seems to
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd."""

    severity: Severity
    path: Path  # the file or folder to look at
    what: str  # what was expected there and what was found, without the path


def audit(root: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[Finding]:
    """Findings in all categories at `root`, as they turn up, category by category; none in a set without fault.

    Every image and mask is decoded, every image hashed. `progress(done, total)` is called after each image of a
    category.

    Raises:
        DataError: there are no categories at `root`.
    """
    names = list_categories(root)
    dataset = recognise(names)
    for name in names:
        try:
            category, problems = scan_category(root, name)
        except DataError as error:
            yield Finding(Severity.ERROR, root / name, str(error))
            continue
        for problem in problems:
            yield Finding(Severity.ERROR, problem.path, problem.what)
        digests: dict[str, list[Sample]] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            inspected = pool.map(_inspect, category.samples)
            for done, (sample, (digest, findings)) in enumerate(zip(category.samples, inspected, strict=True), start=1):
                yield from findings
                if digest:
                    digests.setdefault(digest, []).append(sample)
                if progress:
                    progress(done, len(category.samples))
        yield from _duplicates(category, digests)
        yield from _omissions(category)
        if dataset:
            yield from _differences(category, dataset)


def _inspect(sample: Sample) -> tuple[str, list[Finding]]:
    """SHA-256 of the image file, empty where it cannot be read, and what is wrong with the image and its mask."""
    findings: list[Finding] = []
    digest = ""
    try:
        height, width = read_image(sample.image).shape[:2]
        with sample.image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if min(height, width) < SMALLEST_PX:
            what = f"expected at least {SMALLEST_PX} px a side, found {height}×{width}"
            findings.append(Finding(Severity.WARNING, sample.image, what))
    except (DataError, OSError) as error:
        findings.append(_failure(sample.image, error))
    if sample.mask is not None:
        try:
            findings += _inspect_mask(sample.mask)
            if digest:
                check_sizes(sample)
        except DataError as error:
            findings.append(_failure(sample.mask, error))
    return digest, findings


def _inspect_mask(path: Path) -> Iterator[Finding]:
    mask = read_mask(path)
    if not mask.any():
        yield Finding(Severity.WARNING, path, "expected a marked defect, found an empty mask")
        return
    if mask.all():
        yield Finding(Severity.WARNING, path, "expected a part of the image marked, found all of it")
    others = np.setdiff1d(read_image(path)[mask > 0], [0, 255])
    if others.size:
        between = f"{others[0]}" if others.size == 1 else f"{others.size} levels from {others[0]} to {others[-1]}"
        yield Finding(Severity.WARNING, path, f"expected 0 and 255, found {between} too; all above 0 counts as defect")


def _failure(path: Path, error: Exception) -> Finding:
    return Finding(Severity.ERROR, path, str(error).removeprefix(f"{path}").lstrip(": "))


def _duplicates(category: Category, digests: dict[str, list[Sample]]) -> Iterator[Finding]:
    """One finding for every file too many, at the training image where the other lies in test."""
    for samples in digests.values():
        train = [sample for sample in samples if sample.split is Split.TRAIN]
        test = [sample for sample in samples if sample.split is Split.TEST]
        if test:
            what = f"expected no test image among the training images, found the bytes of {_place(test[0], category)}"
            yield from (Finding(Severity.WARNING, sample.image, what) for sample in train)
        for first, *others in filter(None, (train, test)):
            what = f"expected different images, found the bytes of {_place(first, category)}"
            yield from (Finding(Severity.WARNING, sample.image, what) for sample in others)


def _place(sample: Sample, category: Category) -> str:
    return category.path_in_root(sample.image)


def _omissions(category: Category) -> Iterator[Finding]:
    if category.is_plain:
        yield Finding(Severity.NOTE, category.root, "a plain folder: all images count as good, for training")
    elif not category.test:
        yield Finding(Severity.NOTE, category.root, f"'{category.name}' has no test images: nothing to evaluate")
    elif category.defects and not category.has_masks:
        yield Finding(Severity.NOTE, category.root, f"'{category.name}' has no ground_truth: image metrics only")


def _differences(category: Category, dataset: str) -> Iterator[Finding]:
    """Where the counts are not those of the published set."""
    known = DATASETS[dataset].find(category.name)
    if known is None:
        return
    defective = sum(sample.is_defect for sample in category.test)
    counts = {
        "training images": (known.train, len(category.train)),
        "good test images": (known.good, len(category.test) - defective),
        "defective test images": (known.defect, defective),
        "defect types": (known.types, len(category.defects)),
    }
    for what, (expected, found) in counts.items():
        if expected != found:
            text = f"expected {expected} {what} as in {DATASETS[dataset].title}, found {found}"
            yield Finding(Severity.WARNING, category.folder, text)
