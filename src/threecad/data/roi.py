"""The region of interest from what the setting `data.roi` names: a mask image, a labelme file, or shapes in shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threecad.data.labels.labelme import read_file
from threecad.data.labels.shapes import polygon, rectangle
from threecad.data.loading import load_images
from threecad.errors import DataError
from threecad.framing import Region
from threecad.images import Decoding, limit_of, read_mask
from threecad.records import Sample

CANVAS = (1024, 1024)
"""Height and width on which shapes in shares are drawn; they are stretched to any image."""

COLOUR_IMAGES = 64
"""Good images, evenly chosen, whose mean colour is painted over what lies outside."""


def read_region(roi: Path | Sequence[Sequence[float]], decoding: Decoding | None = None) -> Region:
    """The region, still in grey.

    Raises:
        DataError: a file that cannot be read, or a region that covers nothing.
    """
    if not isinstance(roi, Path):
        region = Region(np.logical_or.reduce([_shape(shape) for shape in roi]), is_exact=False)
    elif roi.suffix.lower() == ".json":
        region = Region(read_file(roi).mask())
    else:
        region = Region(read_mask(roi, **limit_of(decoding or {})).astype(bool))
    if not region.mask.any():
        raise DataError(f"setting 'data.roi': expected a region that covers something, found none in {roi}")
    return region


def mean_colour(
    samples: Sequence[Sample], region: Region, size: tuple[int, int], decoding: Decoding | None = None
) -> tuple[int, int, int]:
    """The mean colour of good parts inside the region: what is painted outside stands out least."""
    even = np.linspace(0, len(samples) - 1, min(len(samples), COLOUR_IMAGES)).astype(int)
    chosen = [samples[index] for index in even]
    inside = Region(region.mask, is_exact=False).at(size)
    colours = load_images(chosen, size, decoding=decoding)[:, inside].reshape(-1, 3).mean(axis=0)
    red, green, blue = (round(float(value)) for value in colours)
    return red, green, blue


def _shape(shares: Sequence[float]) -> np.ndarray:
    points = [(x * CANVAS[1], y * CANVAS[0]) for x, y in zip(shares[::2], shares[1::2], strict=True)]
    where = f"setting 'data.roi', {list(shares)} on a canvas of {CANVAS[0]}×{CANVAS[1]}"
    return rectangle(points, CANVAS, where) if len(points) == 2 else polygon(points, CANVAS, where)
