"""Where a map is unusual: its connected areas above a value, and how large they are among good parts."""

from __future__ import annotations

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


def regions(anomaly_map: np.ndarray, threshold: float, least_area_px: int = 1) -> list[Region]:
    """8-connected areas of the map (H, W) strictly above `threshold`, of at least `least_area_px`; highest peak first.

    NaN is above nothing.
    """
    labels, count = label_regions(anomaly_map > threshold)
    found = []
    boxes, areas = bounding_boxes(labels, count), region_areas(labels, count)
    for label, (box, area) in enumerate(zip(boxes, areas, strict=True), start=1):
        if area >= least_area_px:
            rows, columns = box
            peak = float(anomaly_map[box][labels[box] == label].max())
            x, y = int(columns.start), int(rows.start)
            found.append(Region((x, y, int(columns.stop) - x, int(rows.stop) - y), int(area), peak))
    return sorted(found, key=lambda region: -region.peak)


def area_peaks(anomaly_map: np.ndarray) -> tuple[float, ...]:
    """For each of `AREAS_PX` the lowest value above which the map (H, W), all finite, has no region of that area.

    The first is the map's maximum; an area that the whole image does not have gets its minimum.
    """
    values = np.unique(anomaly_map)[::-1]  # falling, so that regions grow with the index

    @cache  # the searches begin alike
    def largest(index: int) -> int:
        """Area of the largest region at `values[index]` and above."""
        labels, count = label_regions(anomaly_map >= values[index])
        return int(region_areas(labels, count).max(initial=0))

    return tuple(float(values[bisect_left(range(len(values) - 1), area, key=largest)]) for area in AREAS_PX)


def peak_of_area(peaks: tuple[float, ...], least_area_px: int) -> float:
    """From `area_peaks`, the value at the largest kept area up to `least_area_px`: never too low for it."""
    return peaks[max(bisect_right(AREAS_PX, least_area_px) - 1, 0)]
