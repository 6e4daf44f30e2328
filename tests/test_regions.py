"""Connected regions of a mask."""

from __future__ import annotations

import numpy as np
import pytest

from threecad.errors import DataError
from threecad.regions import bounding_boxes, label_regions, region_areas

MASK = np.array(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
    ]
)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    labels, count = label_regions(MASK)
    assert count == 2
    assert labels.dtype == np.int32
    assert labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]]


def test_areas_and_boxes_belong_to_the_labels_in_order() -> None:
    labels, count = label_regions(MASK)
    assert region_areas(labels, count).tolist() == [2, 2]
    assert bounding_boxes(labels, count) == [(slice(0, 2), slice(0, 2)), (slice(2, 4), slice(3, 4))]


@pytest.mark.parametrize("scale", [True, 1, 255, 0.5])
def test_every_value_but_zero_is_mask(scale: float) -> None:
    assert label_regions(MASK * scale)[1] == 2


def test_an_empty_mask_has_no_regions() -> None:
    labels, count = label_regions(np.zeros((3, 5), bool))
    assert count == 0
    assert labels.shape == (3, 5)
    assert not labels.any()
    assert region_areas(labels, count).size == 0
    assert bounding_boxes(labels, count) == []


def test_a_full_mask_is_one_region() -> None:
    labels, count = label_regions(np.ones((3, 5), bool))
    assert count == 1
    assert region_areas(labels, count).tolist() == [15]


def test_labels_equal_a_flood_fill_pixel_by_pixel() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    mask[:4] = mask[:, -6:] = False  # regions far from two borders
    labels, count = label_regions(mask)
    expected, n_expected = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if expected[start]:
            continue
        n_expected += 1
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            if 0 <= row < 30 and 0 <= column < 40 and mask[row, column] and not expected[row, column]:
                expected[row, column] = n_expected
                waiting += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    assert count == n_expected > 10
    # One to one: SciPy numbers a region where its scan meets it, which two arms of one region can do twice.
    assert len(set(zip(labels[mask].tolist(), expected[mask].tolist(), strict=True))) == count
    assert not labels[~mask].any()


def test_a_mask_with_channels_is_an_error_naming_its_shape() -> None:
    with pytest.raises(DataError, match=r"\(H, W\), found \(4, 4, 3\)"):
        label_regions(np.zeros((4, 4, 3)))
