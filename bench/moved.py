"""A category whose parts lie off: each image and its mask cut out at a random place, all to one size.

python bench/moved.py ROOT CATEGORY --out ROOT2 [--share 0.96] [--seed 0]

What is cut out has the given share of each side, so that parts lie up to half of the rest off their middle. A defect
that is cut away leaves its image out. Places are drawn by the seed, image by image in the order of their paths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from threecad.data.readers import read_category
from threecad.images import read_image, read_mask, write_png
from threecad.records import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.96)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    category, random = read_category(options.root, options.category), np.random.default_rng(options.seed)
    folder = options.out / f"moved_{options.category}"
    for split, samples in (("train", category.train), ("test", category.test)):
        for sample in sorted(samples, key=lambda one: one.image):
            write(sample, folder, split, options.share, random)


def write(sample: Sample, folder: Path, split: str, share: float, random: np.random.Generator) -> None:
    """What is cut out of an image and of its mask, as files of the 3CAD tree."""
    pixels = read_image(sample.image)
    sides = [round(share * side) for side in pixels.shape[:2]]
    starts = [random.integers(side - cut + 1) for side, cut in zip(pixels.shape[:2], sides, strict=True)]
    place = tuple(slice(start, start + cut) for start, cut in zip(starts, sides, strict=True))
    name = f"{sample.image.stem}.png"
    if sample.masks:
        mask = np.any([read_mask(file)[place] for file in sample.masks], axis=0)
        if not mask.any():
            return
        write_png(folder / "ground_truth" / sample.defect / name, 255 * mask.astype(np.uint8))
    write_png(folder / split / sample.defect / name, pixels[place])


if __name__ == "__main__":
    main()
