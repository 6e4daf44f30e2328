"""How well runs of one category outline each type of defect: AP of the pixels of that type's images and the good ones.

python bench/defect_types.py RUN… --data ROOT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from threecad.checkpoint import load_detector
from threecad.data.loading import load_images, load_masks
from threecad.data.readers import read_category
from threecad.devices import autocast
from threecad.metrics import pixel_scores
from threecad.records import GOOD
from threecad.runs import RunFolder
from threecad.tensors import to_tensor

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    found = [dict(average_precisions(run, asked.data)) for run in asked.runs]
    header = ("defect", *map(str, asked.runs))
    print(f"| {' | '.join(header)} |\n|---|{'---:|' * len(found)}")
    for kind in found[0]:
        print(f"| {kind} | {' | '.join(f'{100 * one[kind]:.1f}' for one in found)} |")


def average_precisions(run: Path, root: Path) -> Iterator[tuple[str, float]]:
    """AP of each type of defect."""
    detector, record = load_detector(RunFolder(run))
    category, size = read_category(root, *record.categories), detector.config.image_size
    images, masks = np.array(load_images(category.test, size)), load_masks(category.test, size)
    maps = np.empty((len(images), *size), np.float32)
    with torch.no_grad(), autocast(record.precision, torch.device("cpu")):
        for first in range(0, len(images), BATCH):
            found = detector(to_tensor(images[first : first + BATCH])).anomaly_map
            maps[first : first + BATCH] = found[:, 0].float().numpy()
    kinds = [sample.defect for sample in category.test]
    for kind in sorted(set(kinds) - {GOOD}):
        shown = [index for index, one in enumerate(kinds) if one in (GOOD, kind)]
        yield kind, pixel_scores(maps[shown], [masks[index] for index in shown]).p_ap


if __name__ == "__main__":
    main()
