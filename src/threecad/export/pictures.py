"""The pictures of a proof: good parts and defective ones, the best that there are, and what they are said to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threecad.data.readers import Category, read_category
from threecad.demo.parts import CATEGORY, write_parts
from threecad.errors import DataError
from threecad.evaluation import choose_categories
from threecad.images import Decoding, read_image, write_png
from threecad.predictor import Predictor
from threecad.records import GOOD, Split
from threecad.runs import RunRecord
from threecad.runtime.proof import Kind, Picture

MOST = 100
"""Pictures of each kind and category; of more, these are taken evenly."""

DRAWN = 12
"""Parts of each kind that are drawn where there are none."""


@dataclass(frozen=True)
class ProofPictures:
    """What both detectors are to look at."""

    pictures: list[Picture]
    good_parts: str  # which ones
    defective_parts: str


def gather_pictures(record: RunRecord, predictor: Predictor, data: Path | None, workspace: Path) -> ProofPictures:
    """The pictures of a proof.

    Good parts are those that the fit kept aside, else those that it learnt from; defective ones are those of the test
    folder, else good ones with a patch of themselves pasted elsewhere. Without any data, drawn parts stand for both.

    Args:
        predictor: of the run: how it reads pictures, and what of them it sees.
        data: the data root of the fit.
        workspace: an empty folder for pictures that have to be made.

    Raises:
        DataError: the data root is not in order, or is not the one of the fit.
    """
    if data is None:
        if not predictor.view.only_resizes:
            raise DataError(
                "the run sees a region of interest, tiles or a golden part, which drawn parts do not fit; "
                "give --data ROOT"
            )
        return _drawn(record, workspace)
    categories = [read_category(data, name) for name in choose_categories(record, data)]
    aside = _evenly(kept_aside(record, data))
    good = aside or [
        Picture(sample.image, category.path_in_root(sample.image), "good", _learnt_as(record, category))
        for category in categories
        for sample in _evenly(category.train)
    ]
    known = [
        Picture(sample.image, category.path_in_root(sample.image), "defective", _learnt_as(record, category))
        for category in categories
        for sample in _evenly([sample for sample in category.test if sample.is_defect])
    ]
    return ProofPictures(
        good
        + (known or [_altered(picture, index, workspace, predictor.decoding) for index, picture in enumerate(good)]),
        "kept aside by the fit" if aside else "which the fit has learnt from: it kept none aside",
        "of the test folder" if known else "made of the good ones by pasting a patch elsewhere: none are known",
    )


def kept_aside(record: RunRecord, data: Path) -> list[Picture]:
    """The good parts that the fit kept aside, in the order of `run.json`.

    Raises:
        DataError: one is not in the data root.
    """
    missing = [place for place in record.holdout if not (data / place).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"expected the good parts that the fit kept aside in {data}, found no {missing[0]}{more}; "
            "give the data root of the fit"
        )
    several = len(record.categories) > 1  # then a place begins with its category
    return [
        Picture(data / place, place, "good", Path(place).parts[0] if several else record.categories[0])
        for place in record.holdout
    ]


def _learnt_as(record: RunRecord, category: Category) -> str:
    """The name under which the run knows a category; one of another name is the run's only one."""
    return category.name if category.name in record.categories else record.categories[0]


def _evenly(items: Sequence) -> list:  # type: ignore[type-arg]
    chosen = np.unique(np.linspace(0, len(items) - 1, min(len(items), MOST)).round().astype(int))
    return [items[index] for index in chosen]


def _altered(good: Picture, seed: int, workspace: Path, decoding: Decoding) -> Picture:
    """A good part with a patch of a tenth of its sides pasted elsewhere, and darkened."""
    pixels = read_image(good.path, **decoding)
    rng = np.random.default_rng(seed)
    height, width = pixels.shape[:2]
    rows, columns = max(2, height // 10), max(2, width // 10)
    (top, left), (to_top, to_left) = (
        (rng.integers(height - rows + 1), rng.integers(width - columns + 1)) for _ in range(2)
    )
    patch = pixels[top : top + rows, left : left + columns] // 2
    pixels[to_top : to_top + rows, to_left : to_left + columns] = patch
    place = f"altered/{Path(good.place).with_suffix('.png').as_posix()}"
    file = workspace / place
    file.parent.mkdir(parents=True, exist_ok=True)
    write_png(file, pixels)
    return Picture(file, place, "defective", good.category)


def _drawn(record: RunRecord, workspace: Path) -> ProofPictures:
    write_parts(workspace, train=DRAWN, good=0, defects=2)
    named = "drawn, of a product of another kind: no --data was given"
    pictures = []
    for sample in read_category(workspace, CATEGORY).samples:
        kind: Kind = "good" if (sample.split, sample.defect) == (Split.TRAIN, GOOD) else "defective"
        pictures.append(
            Picture(sample.image, sample.image.relative_to(workspace).as_posix(), kind, record.categories[0])
        )
    return ProofPictures(pictures, named, named)
