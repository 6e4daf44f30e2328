"""Connected regions of a mask: pixels that touch at a side or at a corner belong together (8-connected)."""

from __future__ import annotations

import numpy as np

from threecad.errors import DataError

Box = tuple[slice, slice]
"""Rows and columns; `mask[box]` is the smallest rectangle around a region."""


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels (H, W) int32 and the number of regions: 0 where `mask` (H, W) is 0 or False, else 1 … count.

    Regions are 8-connected and numbered in the order in which their first pixels are read.

    Raises:
        DataError: `mask` is not two-dimensional.
    """
    from scipy import ndimage

    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise DataError(f"expected a mask of shape (H, W), found {mask.shape}")
    labels = np.zeros(mask.shape, np.int32)
    # Defects are small: labelling only the rectangle around them costs a fraction of labelling the image.
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return labels, 0
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    count = ndimage.label(mask[box], structure=np.ones((3, 3), np.int8), output=labels[box])
    return labels, int(count)


def region_areas(labels: np.ndarray, count: int) -> np.ndarray:
    """Areas (count,) in pixels of the regions 1 … count of `labels` (H, W)."""
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def bounding_boxes(labels: np.ndarray, count: int) -> list[Box]:
    """The rectangle around each of the regions 1 … count of `labels` (H, W)."""
    from scipy import ndimage

    return ndimage.find_objects(labels, count)
