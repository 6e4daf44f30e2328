"""Real-IAD (Wang et al., CVPR 2024): a list a category, and five views of every part.

    ROOT/CATEGORY.json, ROOT/realiad_jsons/CATEGORY.json or ROOT/realiad_jsons/realiad_jsons/CATEGORY.json
    ROOT/[realiad_1024/]CATEGORY/OK/S0001/CATEGORY_0001_OK_C1_….jpg
    ROOT/[realiad_1024/]CATEGORY/NG/PIT/S0002/CATEGORY_0002_PIT_C1_….jpg and ….png, its mask

    {"meta": {"normal_class": "OK", "prefix": "CATEGORY/"},
     "train": [{"category": …, "anomaly_class": "OK", "image_path": …, "mask_path": null}], "test": […]}

Paths are relative to the folder of the category, whatever prefix the list was made with. The views of a part lie in one
folder, which names the part: `Sample.part`. A view of a defective part on which the defect is not seen is listed as OK,
and is a good image here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from threecad.data.category import Category
from threecad.data.folders import Problem, is_folder
from threecad.data.tables import below, read_json
from threecad.errors import DataError
from threecad.records import GOOD, Sample, Split

LISTS = (Path("realiad_jsons", "realiad_jsons"), Path("realiad_jsons"), Path())
IMAGES = (Path(), Path("realiad_1024"), Path("realiad_512"), Path("realiad_256"), Path("realiad_raw"))


class RealIADReader:
    """Reads what the list of a category names."""

    title = "Real-IAD"

    def recognises(self, root: Path) -> bool:
        """Whether there is a list beside the images of its category."""
        return bool(self.names(root))

    def names(self, root: Path) -> list[str]:
        """Categories that have both a list and a folder of images, sorted."""
        return sorted(name for name, file in _lists(root).items() if _images(root, name) and _is_list(file))

    def scan(self, root: Path, name: str) -> tuple[Category, list[Problem]]:
        """The images that the list names; one that is not there is a problem."""
        file = _lists(root)[name]
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("meta"), dict):
            raise DataError(f"{file}: expected meta, train and test, found {str(content)[:80]}")
        normal = content["meta"].get("normal_class", "OK")
        images = _images(root, name)
        if images is None:
            raise DataError(f"{root}: expected the images of '{name}' in a folder of that name, found none")
        problems: list[Problem] = []
        samples: dict[Split, list[Sample]] = {Split.TRAIN: [], Split.TEST: []}
        for split, into in samples.items():
            for number, item in enumerate(content.get(split, ()), start=1):
                try:
                    into.append(_sample(images, item, name, split, normal, f"{file}, {split} {number}"))
                except DataError as error:
                    problems.append(Problem(file, str(error).removeprefix(f"{file}, ")))
            into.sort(key=lambda sample: (sample.defect, sample.image.as_posix()))
        problems += [
            Problem(sample.image, f"expected good images for training, {file.name} calls it {sample.defect}")
            for sample in samples[Split.TRAIN]
            if sample.is_defect
        ]
        test = samples[Split.TEST]
        has_masks = any(sample.mask for sample in test)
        problems += [
            Problem(sample.image, f"expected a mask_path in {file.name}, found none")
            for sample in test
            if has_masks and sample.is_defect and sample.mask is None
        ]
        return Category(name, root, images, tuple(samples[Split.TRAIN]), tuple(test), has_masks), problems


def _lists(root: Path) -> dict[str, Path]:
    """The lists by the name of their category."""
    for place in LISTS:
        files = sorted((root / place).glob("*.json"))
        if files:
            return {file.stem: file for file in files}
    return {}


def _images(root: Path, name: str) -> Path | None:
    return next((root / place / name for place in IMAGES if is_folder(root / place / name)), None)


def _is_list(file: Path) -> bool:
    """Whether a JSON file is a list of this set, as far as its beginning tells; the lists are megabytes long."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            return '"normal_class"' in opened.read(1000)
    except OSError:
        return False


def _sample(images: Path, item: Any, category: str, split: Split, normal: str, where: str) -> Sample:
    if not isinstance(item, dict) or not isinstance(item.get("anomaly_class"), str):
        raise DataError(f"{where}: expected an object with anomaly_class, image_path and mask_path, found {item!r:.80}")
    image = below(images, item.get("image_path"), where)
    is_good = item["anomaly_class"] == normal
    mask = below(images, item["mask_path"], where) if item.get("mask_path") and not is_good else None
    for path in filter(None, (image, mask)):
        if not path.is_file():
            raise DataError(f"{where}: expected a file at {path}, found none")
    part = image.parent.relative_to(images).as_posix()
    return Sample(image, mask, category, GOOD if is_good else item["anomaly_class"], split, part=part)


READER = RealIADReader()
