"""VisA (Zou et al., ECCV 2022) as it is published, split by `1cls.csv`; the converted set is a tree.

    ROOT/split_csv/1cls.csv    object,split,label,image,mask    paths relative to ROOT
    ROOT/OBJ/Data/Images/{Normal,Anomaly}/NAME.JPG
    ROOT/OBJ/Data/Masks/Anomaly/NAME.png

The levels of a mask are numbers of kinds of defects, 1 to 9, so that a mask looks black; every level but 0 is defect.
The published test images are not told apart by kind: their defect is called `anomaly`.
"""

from __future__ import annotations

from pathlib import Path

from threecad.data.category import Category
from threecad.data.folders import Problem, enumerate_names, folders_in, is_folder
from threecad.data.tables import below, read_csv
from threecad.errors import DataError
from threecad.records import GOOD, Sample, Split

SPLIT_FILE = Path("split_csv", "1cls.csv")
COLUMNS = ("object", "split", "label", "image", "mask")
ANOMALY = "anomaly"


class VisAReader:
    """Reads what the list of the one-class setting names."""

    title = "VisA"

    def recognises(self, root: Path) -> bool:
        """Whether the list lies at `root`, or folders of the set, which are no use without it."""
        return (root / SPLIT_FILE).is_file() or any(
            is_folder(folder / "Data" / "Images") for folder in folders_in(root).values()
        )

    def names(self, root: Path) -> list[str]:
        """Objects in the list whose folder is there, sorted."""
        named = {line["object"] for _, line in read_csv(root / SPLIT_FILE, COLUMNS)}
        names = sorted(name for name in named if is_folder(root / name))
        if not names:
            raise DataError(
                f"{root / SPLIT_FILE}: expected a folder for one of {enumerate_names(sorted(named))} beside it"
            )
        return names

    def scan(self, root: Path, name: str) -> tuple[Category, list[Problem]]:
        """The images that the list gives to the object; one that is not there is a problem."""
        problems: list[Problem] = []
        samples: list[Sample] = []
        for number, line in read_csv(root / SPLIT_FILE, COLUMNS):
            if line["object"] == name:
                try:
                    samples.append(_sample(root, line, f"{root / SPLIT_FILE}, line {number}"))
                except DataError as error:
                    problems.append(Problem(root / SPLIT_FILE, str(error).removeprefix(f"{root / SPLIT_FILE}, ")))
        samples.sort(key=lambda sample: (sample.defect, sample.image.name))
        train = tuple(sample for sample in samples if sample.split is Split.TRAIN)
        test = tuple(sample for sample in samples if sample.split is Split.TEST)
        has_masks = any(sample.mask for sample in test)
        problems += [
            Problem(sample.image, f"expected a mask in the last column of {SPLIT_FILE.name}, found none")
            for sample in test
            if has_masks and sample.is_defect and sample.mask is None
        ]
        problems += [
            Problem(sample.image, f"expected good images for training, {SPLIT_FILE.name} calls it {sample.defect}")
            for sample in train
            if sample.is_defect
        ]
        return Category(name, root, root / name, train, test, has_masks), problems


def _sample(root: Path, line: dict[str, str], where: str) -> Sample:
    if line["split"] not in (Split.TRAIN, Split.TEST):
        raise DataError(f"{where}: expected 'train' or 'test' as the split, found '{line['split']}'")
    if line["label"] not in ("normal", ANOMALY):
        raise DataError(f"{where}: expected 'normal' or '{ANOMALY}' as the label, found '{line['label']}'")
    image = below(root, line["image"], where)
    mask = below(root, line["mask"], where) if line["mask"] else None
    for path in filter(None, (image, mask)):
        if not path.is_file():
            raise DataError(f"{where}: expected a file at {path}, found none")
    defect = GOOD if line["label"] == "normal" else ANOMALY
    return Sample(image, mask if defect != GOOD else None, line["object"], defect, Split(line["split"]))


READER = VisAReader()
