"""Published image sets, with the counts that a complete copy has.

Sources: 3CAD, Table 1 of the paper; MVTec-AD, the table of its own (Bergmann et al., CVPR 2019); VisA, its list for one
class (Zou et al., ECCV 2022). Nothing is downloaded from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownCategory:
    """What a complete copy of one category holds."""

    name: str  # of its folder
    abbreviation: str  # in tables
    train: int  # good training images
    good: int  # good test images
    defect: int  # defective test images
    types: int  # folders of defective test images


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A published image set."""

    title: str
    categories: tuple[KnownCategory, ...]

    def find(self, name: str) -> KnownCategory | None:
        """The category whose folder or abbreviation is `name`."""
        return next((category for category in self.categories if name in (category.name, category.abbreviation)), None)


def recognise(names: Iterable[str]) -> str | None:
    """Key in `DATASETS` of the set that has all these categories, or None; no name at all is no set."""
    wanted = list(names)
    for key, dataset in DATASETS.items():
        if wanted and all(dataset.find(name) for name in wanted):
            return key
    return None


DATASETS: dict[str, KnownDataset] = {
    "3cad": KnownDataset(
        "3CAD",
        (
            KnownCategory("Aluminum_Camera_Cover", "ACC", 784, 369, 1077, 10),
            KnownCategory("Aluminum_Ipad", "AI", 2096, 913, 1134, 3),
            KnownCategory("Aluminum_Middle_Frame", "AMF", 1548, 731, 748, 5),
            KnownCategory("Aluminum_New_Middle_Frame", "ANMF", 1072, 670, 736, 6),
            KnownCategory("Aluminum_New_Ipad", "ANI", 2233, 999, 3937, 4),
            KnownCategory("Aluminum_Pc", "AP", 1698, 911, 2250, 14),
            KnownCategory("Copper_Stator", "CS", 409, 196, 763, 1),
            KnownCategory("Iron_Stator", "IS", 653, 295, 817, 4),
        ),
    ),
    "mvtec_ad": KnownDataset(
        "MVTec-AD",
        (
            KnownCategory("bottle", "bottle", 209, 20, 63, 3),
            KnownCategory("cable", "cable", 224, 58, 92, 8),
            KnownCategory("capsule", "capsule", 219, 23, 109, 5),
            KnownCategory("carpet", "carpet", 280, 28, 89, 5),
            KnownCategory("grid", "grid", 264, 21, 57, 5),
            KnownCategory("hazelnut", "hazelnut", 391, 40, 70, 4),
            KnownCategory("leather", "leather", 245, 32, 92, 5),
            KnownCategory("metal_nut", "metal_nut", 220, 22, 93, 4),
            KnownCategory("pill", "pill", 267, 26, 141, 7),
            KnownCategory("screw", "screw", 320, 41, 119, 5),
            KnownCategory("tile", "tile", 230, 33, 84, 5),
            KnownCategory("toothbrush", "toothbrush", 60, 12, 30, 1),
            KnownCategory("transistor", "transistor", 213, 60, 40, 4),
            KnownCategory("wood", "wood", 247, 19, 60, 5),
            KnownCategory("zipper", "zipper", 240, 32, 119, 7),
        ),
    ),
    "visa": KnownDataset(
        "VisA",
        (
            KnownCategory("candle", "candle", 900, 100, 100, 1),
            KnownCategory("capsules", "capsules", 542, 60, 100, 1),
            KnownCategory("cashew", "cashew", 450, 50, 100, 1),
            KnownCategory("chewinggum", "chewinggum", 453, 50, 100, 1),
            KnownCategory("fryum", "fryum", 450, 50, 100, 1),
            KnownCategory("macaroni1", "macaroni1", 900, 100, 100, 1),
            KnownCategory("macaroni2", "macaroni2", 900, 100, 100, 1),
            KnownCategory("pcb1", "pcb1", 904, 100, 100, 1),
            KnownCategory("pcb2", "pcb2", 901, 100, 100, 1),
            KnownCategory("pcb3", "pcb3", 905, 101, 100, 1),
            KnownCategory("pcb4", "pcb4", 904, 101, 100, 1),
            KnownCategory("pipe_fryum", "pipe_fryum", 450, 50, 100, 1),
        ),
    ),
}
