"""A category as plain data, whichever layout it was read from, and what can be said of its samples."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from threecad.errors import DataError
from threecad.images import MAX_PIXELS, image_size
from threecad.records import Sample


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of part: its good images to learn from, and the images to test on."""

    name: str
    root: Path  # the data root; paths in lists and results are relative to it
    folder: Path  # below which the category's files lie
    train: tuple[Sample, ...]  # empty where there are test images alone: it can be evaluated, not learnt
    test: tuple[Sample, ...]
    has_masks: bool  # every defect in `test` has one; without, there are image metrics only
    is_plain: bool = False  # a folder of images, all good, without anything to test on
    validation: tuple[Sample, ...] = ()  # good images that the set itself keeps aside, instead of a share of `train`

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Training samples, then validation, then test samples."""
        return self.train + self.validation + self.test

    @property
    def defects(self) -> tuple[str, ...]:
        """Names of the defect types in `test`, sorted."""
        return tuple(sorted({sample.defect for sample in self.test if sample.is_defect}))

    def path_in_root(self, path: Path) -> str:
        """`path` relative to the data root, with forward slashes on every system."""
        return path.relative_to(self.root).as_posix()


def check_sizes(sample: Sample, *, max_pixels: int = MAX_PIXELS) -> None:
    """Nothing, where the sample has no mask or only masks of its image's size; reads only headers.

    Raises:
        DataError: the sizes differ, or a file cannot be read.
    """
    for path in sample.masks:
        image, mask = (image_size(file, max_pixels=max_pixels) for file in (sample.image, path))
        if image != mask:
            raise DataError(f"{path}: expected the size of its image, {image[0]}×{image[1]}, found {mask[0]}×{mask[1]}")


def exclude(category: Category, list_file: Path) -> Category:
    """The category without the images listed in a text file, one path relative to the data root a line.

    Blank lines and lines that start with `#` are skipped, as are images of other categories of the same root.

    Raises:
        DataError: the file cannot be read, a line names no image (with the nearest that is), or no good training
            image is left.
    """
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a text file of image paths at {list_file}: {error}") from None
    known = {category.path_in_root(sample.image): sample for sample in category.samples}
    excluded = set()
    for number, line in enumerate(lines, start=1):
        path = line.strip().replace("\\", "/").removeprefix("./")
        if not path or path.startswith("#"):
            continue
        if path in known:
            excluded.add(known[path])
        elif not _is_of_another(path, category):
            near = difflib.get_close_matches(path, known, n=1) or sorted(known)[:1]
            raise DataError(
                f"{list_file}, line {number}: expected an image path relative to {category.root}\n"
                f"found '{path}'; the nearest is '{near[0]}'"
            )
    train, validation, test = (
        tuple(sample for sample in samples if sample not in excluded)
        for samples in (category.train, category.validation, category.test)
    )
    if category.train and not train:
        raise DataError(f"{list_file} leaves category '{category.name}' without a good training image")
    return replace(category, train=train, validation=validation, test=test)


def fingerprint(samples: Iterable[Sample], sha256_of: Callable[[Path], str]) -> str:
    """16 hex digits that change with any image or mask, its place in the set or its bytes; not with the root."""
    lines = []
    for sample in samples:
        masks = "+".join(map(sha256_of, sample.masks)) or "-"
        place = f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}"
        lines.append(f"{place}\t{sha256_of(sample.image)}\t{masks}\n")
    # A file's name may hold bytes that are no UTF-8; they count as they are.
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()[:16]


def _is_of_another(path: str, category: Category) -> bool:
    """Whether `path` names a file of another category of the same root."""
    file = category.root / path
    return not file.is_relative_to(category.folder) and file.is_file()
