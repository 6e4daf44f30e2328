"""Where a map is unusual: its connected areas above a value, and how large they are among good parts.

A map is looked at as the network gave it, and boxes and areas are scaled to the image's own size: an image of five
megapixels then costs what its map costs. Good parts and new ones are treated alike, so that nothing is lost in between.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from threecad.regions import bounding_boxes, label_regions, region_areas

AREAS_PX = (1, 4, 16, 64, 256, 1024, 4096)
"""Areas at which a good part's peaks are kept, so that the smallest area can be changed without looking again."""


@dataclass(frozen=True, slots=True)
class Region:
    """A connected area of an image."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the image
    area_px: int
    peak: float  # largest value of the map inside

    def as_json(self) -> dict[str, Any]:
        """For `regions.jsonl`."""
        return {"box": list(self.box), "area_px": self.area_px, "peak": self.peak}


def regions(
    anomaly_map: np.ndarray, threshold: float, least_area_px: int = 1, size: tuple[int, int] | None = None
) -> list[Region]:
    """8-connected areas of the map (h, w) strictly above `threshold`, of at least `least_area_px`; highest peak first.

    NaN is above nothing.

    Args:
        size: height and width of the image, to which boxes (outwards) and areas are scaled; the map's own without.
    """
    labels, count = label_regions(anomaly_map > threshold)
    down, right = _pixels_of_a_cell(anomaly_map, size)
    found = []
    boxes, areas = bounding_boxes(labels, count), region_areas(labels, count)
    for label, (box, cells) in enumerate(zip(boxes, areas, strict=True), start=1):
        if cells >= _cells(least_area_px, down * right):
            rows, columns = box
            peak = float(anomaly_map[box][labels[box] == label].max())
            x, y = math.floor(columns.start * right), math.floor(rows.start * down)
            width, height = math.ceil(columns.stop * right) - x, math.ceil(rows.stop * down) - y
            found.append(Region((x, y, width, height), max(round(int(cells) * down * right), 1), peak))
    return sorted(found, key=lambda region: -region.peak)


def area_peaks(anomaly_map: np.ndarray, size: tuple[int, int] | None = None) -> tuple[float, ...]:
    """For each of `AREAS_PX` the lowest value above which the map (h, w), all finite, has no region of that area.

    The first is the map's maximum; an area that the whole image does not have gets its minimum.

    Args:
        size: height and width of the image that areas are counted in; the map's own without.
    """
    values = np.unique(anomaly_map)[::-1]  # falling, so that regions grow with the index

    @cache  # the searches begin alike
    def largest(index: int) -> int:
        """Area of the largest region at `values[index]` and above."""
        labels, count = label_regions(anomaly_map >= values[index])
        return int(region_areas(labels, count).max(initial=0))

    down, right = _pixels_of_a_cell(anomaly_map, size)
    least = [_cells(area, down * right) for area in AREAS_PX]
    return tuple(float(values[bisect_left(range(len(values) - 1), cells, key=largest)]) for cells in least)


def peak_of_area(peaks: tuple[float, ...], least_area_px: int) -> float:
    """From `area_peaks`, the value at the largest kept area up to `least_area_px`: never too low for it."""
    return peaks[max(bisect_right(AREAS_PX, least_area_px) - 1, 0)]


def _pixels_of_a_cell(anomaly_map: np.ndarray, size: tuple[int, int] | None) -> tuple[float, float]:
    """Pixels of the image, downwards and to the right, that one value of its map stands for."""
    height, width = size or anomaly_map.shape
    return height / anomaly_map.shape[0], width / anomaly_map.shape[1]


def _cells(area_px: int, pixels: float) -> int:
    """How many values of a map an area has at least, where each stands for so many pixels."""
    return max(math.ceil(area_px / pixels - 1e-9), 1)
