"""The tree of 3CAD and MVTec-AD, in which the folder of an image says what it shows.

    ROOT/CATEGORY/train/good/NAME.png
                  validation/good/NAME.png    where the set keeps good images aside itself
                  test/good/NAME.png          test/DEFECT/NAME.png
                  ground_truth/DEFECT/NAME.png or NAME_mask.png

Both releases of 3CAD (defects named in English or in pinyin), MVTec-AD, MPDD and the converted VisA have it as it
stands here; sets that only name folders otherwise are read by a `TreeReader` of their own.

Names are sorted. Hidden files and files that are no pictures (`Thumbs.db`, `types.csv`) are ignored, as are masks of
good images. A folder inside a folder of images is ignored unless images lie in it, which would go missing unsaid. No
image is opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from threecad.data.category import Category
from threecad.data.folders import Problem, by_stem, folders_in, has_images, images_in, is_folder
from threecad.images import IMAGE_SUFFIXES
from threecad.records import GOOD, Sample, Split

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")

LIKE_GOOD = frozenset({"good", "ok", "normal", "perfect", "fine", "pass"})
"""Names, in lower case, that people give to a folder of good parts."""

Masks = dict[str, tuple[Path, ...]]
"""Masks by the stem of their image."""


def masks_of_defect(folder: Path, images: Mapping[str, Path], problems: list[Problem]) -> Masks:
    """Masks of one type of defect; one that belongs to no image, or to an image that has another, is a problem."""
    masks: Masks = {}
    for stem, path in by_stem(images_in(folder, problems, MASK_SUFFIXES), problems).items():
        owner = stem if stem in images else stem[:-5] if stem.lower().endswith("_mask") else stem
        if owner not in images:
            expected = f"an image of this name in test/{folder.name} (masks are called NAME.png or NAME_mask.png)"
            problems.append(Problem(path, f"expected {expected}, found none"))
        elif owner in masks:
            problems.append(Problem(path, f"expected one mask of each image, found {masks[owner][0].name} too"))
        else:
            masks[owner] = (path,)
    blurred = images_in(folder, [], JPEG_SUFFIXES)
    if blurred:
        why = "JPEG blurs the border of a defect into the pixels beside it"
        problems.append(Problem(folder, f"expected png, bmp or tif masks, found {len(blurred)} of jpg; {why}"))
    return masks


@dataclass(frozen=True, slots=True)
class TreeReader:
    """Reads categories whose folders are called as its fields say, all relative to the folder of the category."""

    title: str
    train: str = "train/good"
    validation: str = "validation/good"
    test: str = "test"
    good: str = GOOD  # the folder of good images in `test`
    ground_truth: str = "ground_truth"
    marks: tuple[str, ...] = ()  # a folder is a category only if it has one of these; without any, all are
    masks_of: Callable[[Path, Mapping[str, Path], list[Problem]], Masks] = masks_of_defect

    def recognises(self, root: Path) -> bool:
        """Whether `root` is such a category, or holds some."""
        return self._is_category(root) or any(map(self._is_category, folders_in(root).values()))

    def names(self, root: Path) -> list[str]:
        """Names of the categories at `root`, sorted."""
        if self._is_category(root):
            return [root.resolve().name]
        return [name for name, folder in folders_in(root).items() if self._is_category(folder)]

    def scan(self, root: Path, name: str) -> tuple[Category, list[Problem]]:
        """The category as far as it is in order, and everything that is not."""
        folder = root if self._is_category(root) else root / name
        problems: list[Problem] = []
        train = self._good(folder / self.train, name, Split.TRAIN, problems)
        if not train and is_folder(folder / self.train):
            problems.append(
                Problem(folder / self.train, f"expected good images ({', '.join(IMAGE_SUFFIXES)}), found none")
            )
        validation = self._good(folder / self.validation, name, Split.VALIDATION, problems)
        test = self._test(folder, name, problems)
        has_masks = any(sample.mask for sample in test)
        if has_masks:
            problems += [
                Problem(
                    sample.image,
                    f"expected a mask {self.ground_truth}/{sample.defect}/{sample.image.stem}.png, found none",
                )
                for sample in test
                if sample.is_defect and sample.mask is None
            ]
        problems += self._left_out(folder)
        return Category(name, root, folder, train, test, has_masks, validation=validation), problems

    def _is_category(self, folder: Path) -> bool:
        if self.marks and not any(is_folder(folder / mark) for mark in self.marks):
            return False
        if is_folder(folder / self.train):
            return True
        has_training = is_folder((folder / self.train).parent)  # in another layout: not for this reader
        return not has_training and any(map(has_images, folders_in(folder / self.test).values()))

    def _good(self, folder: Path, name: str, split: Split, problems: list[Problem]) -> tuple[Sample, ...]:
        images = by_stem(images_in(folder, problems), problems) if is_folder(folder) else {}
        return tuple(Sample(path, None, name, GOOD, split) for path in images.values())

    def _test(self, folder: Path, name: str, problems: list[Problem]) -> tuple[Sample, ...]:
        types = self._types(folder)
        truths = folders_in(folder / self.ground_truth)
        samples = []
        for defect in types.keys() | truths.keys():
            images = by_stem(images_in(types[defect], problems), problems) if defect in types else {}
            is_good = defect == self.good
            masks = {} if is_good or defect not in truths else self.masks_of(truths[defect], images, problems)
            if defect.lower() in LIKE_GOOD and not is_good and images:
                what = f"expected good parts in {self.test}/{self.good}, found '{defect}', which counts as a defect"
                problems.append(Problem(types[defect], what, stops=False))
            for stem, path in images.items():
                mask, *more = masks.get(stem, (None,))
                kind = GOOD if is_good else defect
                samples.append(Sample(path, mask, name, kind, Split.TEST, more_masks=tuple(filter(None, more))))
        return tuple(sorted(samples, key=lambda sample: (sample.defect, sample.image.name)))

    def _types(self, folder: Path) -> dict[str, Path]:
        """Folders of test images by name; the masks may lie beside them."""
        inside = folders_in(folder / self.test)
        return {name: path for name, path in inside.items() if path != folder / self.ground_truth}

    def _left_out(self, folder: Path) -> list[Problem]:
        """Images of the category that no sample stands for."""
        known = {folder / self.train, folder / self.validation}
        problems = [
            Problem(parent, "expected images in folders that name what they show, found some beside")
            for parent in sorted({path.parent for path in known} | {folder / self.test})
            if has_images(parent)
        ]
        for parent in sorted({path.parent for path in known}):
            problems += [
                Problem(
                    path,
                    f"expected images in {path.parent.name}/{GOOD} only, found some that are left out",
                    stops=False,
                )
                for path in folders_in(parent).values()
                if path not in known and has_images(path)
            ]
        return problems


READER = TreeReader("3CAD, MVTec-AD, MPDD")
