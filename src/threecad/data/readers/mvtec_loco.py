"""MVTec LOCO AD (Bergmann et al., IJCV 2022): an image has a folder of masks, one for each way to see its defect.

    ROOT/CATEGORY/train/good/NAME.png    validation/good/NAME.png
                  test/{good, logical_anomalies, structural_anomalies}/NAME.png
                  ground_truth/{logical_anomalies, structural_anomalies}/NAME/000.png, 001.png, …

The level in a mask, 236 to 255, names the kind of defect; here every level but 0 is defect. All masks of an image are
joined, which is stricter than the set's own metric: that one accepts a defect when a part of it is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from threecad.data.folders import Problem, folders_in, images_in
from threecad.data.readers.tree import MASK_SUFFIXES, Masks, TreeReader


def masks_of_defect(folder: Path, images: Mapping[str, Path], problems: list[Problem]) -> Masks:
    """The masks in the folder that is called like the image; a folder of no image is a problem."""
    masks: Masks = {}
    for name, inside in folders_in(folder).items():
        if name not in images:
            problems.append(Problem(inside, f"expected an image of this name in test/{folder.name}, found none"))
        elif found := images_in(inside, problems, MASK_SUFFIXES):
            masks[name] = tuple(found)
    return masks


READER = TreeReader(
    "MVTec LOCO AD", marks=("test/logical_anomalies", "test/structural_anomalies"), masks_of=masks_of_defect
)
