"""Labelled images, or a set in any layout that is read, written as the tree that everything else reads.

    ROOT/CATEGORY/train/good   test/good   test/DEFECT   ground_truth/DEFECT   types.csv

The tree appears as a whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path

import numpy as np

from threecad.data.labels import Labelled, are_labels, read_labels
from threecad.data.readers import Category, check_sizes, read_categories
from threecad.data.readers.tree import LIKE_GOOD
from threecad.errors import DataError
from threecad.files import appearing, write_text, writing
from threecad.images import read_mask, write_png
from threecad.records import GOOD, Sample, Split

TEST_SHARE = 0.25
"""Share of good images that are kept to test on, where the source does not say which."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How many images of one kind a category was given."""

    category: str
    split: Split
    defect: str
    count: int


@dataclass(frozen=True, slots=True)
class _Planned:
    """An image and its place in the tree."""

    image: Path
    split: Split
    defect: str
    mask: Callable[[], np.ndarray] | None = None  # (H, W) bool, made when it is written
    kinds: Mapping[str, int] = field(default_factory=dict)  # marked pixels by kind of defect, where labels tell


def import_data(
    source: Path,
    root: Path,
    *,
    category: str | None = None,
    test_share: float = TEST_SHARE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Imported]:
    """What was written to `root`: labelled images become masks and types, a published set keeps its split.

    Of a labelled set, the good images are sorted by path and spread evenly over training and test; a defective image
    lies in the folder of the kind with most pixels, its mask joins all kinds, and `types.csv` says which they are.

    Args:
        category: name of the category that labelled images become; without, that of their folder.
        test_share: share of good labelled images that become test images.

    Raises:
        DataError: `root` holds something already, the source is neither labelled nor a known layout, or a label does
            not fit; names it.
        FileError: the tree cannot be written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"expected a new or an empty folder for the tree, found {root} with files already")
    plans: dict[str, list[_Planned]]
    if are_labels(source):
        folder = source if source.is_dir() else source.parent
        plans = {category or folder.resolve().name: _plan_labelled(read_labels(source), test_share)}
    else:
        plans = {one.name: _plan_category(one) for one in read_categories(source)}
    with appearing(root) as building:
        done, total = 0, sum(map(len, plans.values()))
        for name, plan in plans.items():
            kinds: dict[str, Mapping[str, int]] = {}
            for planned, stem in zip(plan, _stems(plan), strict=True):
                place = _write(planned, stem, building / name)
                if planned.kinds:
                    kinds[place.relative_to(building / name).as_posix()] = planned.kinds
                done += 1
                if progress:
                    progress(done, total)
            if kinds:
                _write_types(building / name / "types.csv", kinds)
    return [
        Imported(name, split, defect, count)
        for name, plan in plans.items()
        for (split, defect), count in Counter((planned.split, planned.defect) for planned in plan).items()
    ]


def _plan_labelled(images: Sequence[Labelled], test_share: float) -> list[_Planned]:
    """Places of labelled images; every shape is drawn here, so that a wrong one is found before a file is written."""
    plan: list[_Planned] = []
    good = 0
    for labelled in images:
        kinds = {kind: int(pixels.sum()) for kind, pixels in labelled.masks_by_kind().items()}
        if kinds:
            most = max(kinds, key=lambda kind: kinds[kind])
            if most.lower() in LIKE_GOOD:
                raise DataError(f"{labelled.image}: expected the name of a defect on every shape, found '{most}'")
            plan.append(_Planned(labelled.image, Split.TEST, _folder_name(most, labelled.image), labelled.mask, kinds))
        else:
            is_test = int((good + 1) * test_share) > int(good * test_share)
            plan.append(_Planned(labelled.image, Split.TEST if is_test else Split.TRAIN, GOOD))
            good += 1
    return plan


def _plan_category(category: Category) -> list[_Planned]:
    """Places of a published set's images, in the split that it comes with."""
    plan = []
    for sample in category.samples:
        check_sizes(sample)
        mask = partial(_read_mask, sample) if sample.masks else None
        plan.append(_Planned(sample.image, sample.split, _folder_name(sample.defect, sample.image), mask))
    return plan


def _read_mask(sample: Sample) -> np.ndarray:
    if sample.mask is None:
        raise DataError(f"{sample.image}: expected a mask, found none")
    return read_mask(sample.mask, more=sample.more_masks) > 0


def _folder_name(defect: str, image: Path) -> str:
    """The name of a kind of defect as a folder's on every system; `good` stays for good images."""
    name = re.sub(r"[^\w.+-]+", "_", defect).strip("._")
    if not name:
        raise DataError(f"{image}: expected a kind of defect that can name a folder, found '{defect}'")
    return name


def _stems(plan: Sequence[_Planned]) -> Iterator[str]:
    """Names of the images in the tree: their own, where two have the same with their folder or a number."""
    taken: set[tuple[Split, str, str]] = set()
    for planned in plan:
        own, parent = planned.image.stem, planned.image.parent.name
        names = chain((own, f"{parent}_{own}"), (f"{parent}_{own}_{number}" for number in count(2)))
        stem = next(name for name in names if (planned.split, planned.defect, name.lower()) not in taken)
        taken.add((planned.split, planned.defect, stem.lower()))
        yield stem


def _write(planned: _Planned, stem: str, folder: Path) -> Path:
    """The place of the image, once it and its mask are written."""
    place = folder / planned.split / planned.defect / f"{stem}{planned.image.suffix.lower()}"
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(planned.image, place)
    if planned.mask is not None:
        write_png(folder / "ground_truth" / planned.defect / f"{stem}.png", planned.mask() * np.uint8(255))
    return place


def _write_types(file: Path, kinds_of: Mapping[str, Mapping[str, int]]) -> None:
    kinds = sorted({kind for kinds in kinds_of.values() for kind in kinds})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *kinds])
    table.writerows([image, *(pixels.get(kind, 0) for kind in kinds)] for image, pixels in kinds_of.items())
    write_text(file, text.getvalue())
