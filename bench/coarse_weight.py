"""What CFRG's map is worth on a run's test images with other weights than 0.3 of what is around.

python bench/coarse_weight.py RUN --data ROOT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from threecad.checkpoint import load_detector
from threecad.data.loading import load_images, load_masks
from threecad.data.readers import read_category
from threecad.devices import autocast
from threecad.methods.cfrg import CFRG
from threecad.metrics import pixel_scores
from threecad.nets.calibration import COARSE_WEIGHT, Calibration
from threecad.runs import RunFolder
from threecad.tensors import to_tensor

HEADER = ("set", "weight", "P-AUROC", "P-PRO per image", "P-PRO pooled", "AP")
WEIGHTS = (0.0, 0.1, COARSE_WEIGHT, 1.0)
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    detector, record = load_detector(RunFolder(options.run))
    cfrg, (name,) = cast("CFRG", detector), record.categories
    category, size = read_category(options.data, name), cfrg.config.image_size

    images, masks = np.array(load_images(category.test, size)), load_masks(category.test, size)
    vanished = [sample.is_defect and not mask.any() for sample, mask in zip(category.test, masks, strict=True)]
    segmented, around = (np.concatenate(kind) for kind in zip(*terms(cfrg, images, record.precision), strict=True))
    print(f"| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}", flush=True)
    for weight in WEIGHTS:
        scores = pixel_scores(segmented + weight * around, masks, left_out_of_pro=vanished)
        values = (scores.p_auroc, scores.p_pro_per_image, scores.p_pro, scores.p_ap)
        print(f"| {name} | {weight:g} | {' | '.join(f'{100 * value:.1f}' for value in values)} |", flush=True)


def terms(cfrg: CFRG, images: np.ndarray, precision: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the map adds up, (B, H, W) twice: what is segmented, and what is around."""
    calibration = cast("Calibration", cfrg.calibration)
    with torch.no_grad(), autocast(precision, torch.device("cpu")):
        for first in range(0, len(images), BATCH):
            found = calibration.measure(*cfrg._compare_and_segment(to_tensor(images[first : first + BATCH])))
            yield found.segmented[:, 0].float().numpy(), calibration.around(found)[:, 0].float().numpy()


if __name__ == "__main__":
    main()
