"""The numbers by which the paper describes an image set: its Tables 1 and 2 and its Fig. 3."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from threecad.data.readers import Category, check_sizes
from threecad.data.tables import below, read_csv
from threecad.errors import DataError
from threecad.images import MAX_PIXELS, image_size, read_mask
from threecad.records import Sample
from threecad.regions import bounding_boxes, label_regions
from threecad.threads import thread_count

HEADER = (
    "Category",
    "Training Images",
    "Test Images (all)",
    "Test Images (good)",
    "Test Images (defect)",
    "Defect types",
    "Image Height",
    "Image Width",
    "NE / TE",
)
"""Column titles of Table 1, as the paper prints them."""

HEADER_2 = ("Category", "Normal", "Abnormal", "MDI", "MDT")
"""Column titles of Table 2. MDI: multiple defect instances in one image; MDT: multiple defect types in one image."""

_AREA_EDGES = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_ASPECT_EDGES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, float("inf"))


class Range(NamedTuple):
    """Smallest and largest of some numbers."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}~{self.most}"


@dataclass(frozen=True, slots=True)
class CategoryStatistics:
    """One line of Table 1."""

    name: str
    train: int
    good: int
    defect: int
    types: int
    height: Range  # px, over training and test images
    width: Range
    regions: Range | None  # NE: 8-connected regions in the mask of a defective image; None without masks
    types_in_image: Range | None  # TE: defect types in a defective image; None without defective images
    normal: int  # good images of all splits
    several_regions: int | None  # MDI: images with more than one region; None without masks
    several_types: int | None  # MDT: images with more than one type; None where no `types.csv` tells

    def row(self) -> tuple[str, ...]:
        """Its cells, in the order of `HEADER`."""
        counts = (self.train, self.good + self.defect, self.good, self.defect, self.types)
        together = f"{self.regions or '-'}/{self.types_in_image or '-'}"
        return (self.name, *map(str, counts), str(self.height), str(self.width), together)

    def row_2(self) -> tuple[str, ...]:
        """Its cells, in the order of `HEADER_2`."""
        return (self.name, str(self.normal), str(self.defect), _mark(self.several_regions), _mark(self.several_types))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a number falls between two edges; the upper edge belongs to the bin."""

    title: str
    of: str  # what is counted, in the plural
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float  # nan where nothing was counted

    @property
    def heading(self) -> str:
        """What is counted, and how many there are: `Defect area ratio of 1198 images`."""
        return f"{self.title} of {sum(self.counts)} {self.of}"

    def rows(self) -> list[tuple[str, ...]]:
        """A line for every bin: from, to, count, per cent of all."""
        total = max(sum(self.counts), 1)
        bins = zip(self.edges[:-1], self.edges[1:], self.counts, strict=True)
        return [(f"{low:g}", f"{high:g}", str(count), f"{100 * count / total:.1f}") for low, high, count in bins]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Tables 1 and 2 and Fig. 3 of some categories."""

    categories: tuple[CategoryStatistics, ...]
    area_ratio: Histogram  # Fig. 3 a: of each defective image, the share of its pixels that are marked
    aspect_ratio: (
        Histogram  # Fig. 3 b: of each region, long side by short side of its smallest rectangle, turned freely
    )

    def rows(self) -> list[tuple[str, ...]]:
        """Table 1 without its header: a line a category, and the sums where there are several."""
        rows = [category.row() for category in self.categories]
        if len(rows) > 1:
            rows.append(("All", *(str(sum(int(row[column]) for row in rows)) for column in range(1, 6)), "-", "-", "-"))
        return rows

    def rows_2(self) -> list[tuple[str, ...]]:
        """Table 2 without its header: a line a category, and the sums where there are several."""
        rows = [category.row_2() for category in self.categories]
        if len(rows) > 1:
            normal, defect = (sum(getattr(c, name) for c in self.categories) for name in ("normal", "defect"))
            several = [
                [count for c in self.categories if (count := getattr(c, name)) is not None]
                for name in ("several_regions", "several_types")
            ]
            marks = (_mark(sum(counts) if counts else None) for counts in several)
            rows.append(("All", str(normal), str(defect), *marks))
        return rows

    def content(self) -> dict[str, Any]:
        """Everything as JSON has it; the last edge of a histogram without end is null."""
        return {
            "categories": [asdict(category) for category in self.categories],
            "histograms": [
                {
                    "title": histogram.title,
                    "edges": [edge if math.isfinite(edge) else None for edge in histogram.edges],
                    "counts": list(histogram.counts),
                    "median": histogram.median if math.isfinite(histogram.median) else None,
                }
                for histogram in (self.area_ratio, self.aspect_ratio)
            ],
        }


def measure(categories: Iterable[Category], *, max_pixels: int = MAX_PIXELS) -> Statistics:
    """Tables 1 and 2 and Fig. 3 of these categories: masks are decoded, of images only the headers are read.

    Raises:
        DataError: an image or a mask cannot be read, or a mask has not the size of its image.
    """
    measured: list[CategoryStatistics] = []
    areas: list[float] = []
    aspects: list[float] = []
    for category in categories:
        types = read_types(category)
        defective = [sample for sample in category.test if sample.is_defect]
        measure_mask = partial(_measure_mask, max_pixels=max_pixels)
        with ThreadPoolExecutor(thread_count()) as pool:
            sizes = list(pool.map(lambda sample: image_size(sample.image, max_pixels=max_pixels), category.samples))
            defects = list(pool.map(measure_mask, defective)) if category.has_masks else []
        areas += [defect.area_ratio for defect in defects]
        aspects += [aspect for defect in defects for aspect in defect.aspect_ratios]
        measured.append(
            CategoryStatistics(
                name=category.name,
                train=len(category.train),
                good=len(category.test) - len(defective),
                defect=len(defective),
                types=len(category.defects),
                height=_range(height for height, _ in sizes) or Range(0, 0),
                width=_range(width for _, width in sizes) or Range(0, 0),
                regions=_range(len(defect.aspect_ratios) for defect in defects),
                types_in_image=_range(types.get(sample.image, 1) for sample in defective),
                normal=sum(not sample.is_defect for sample in category.samples),
                several_regions=sum(len(d.aspect_ratios) > 1 for d in defects) if category.has_masks else None,
                several_types=sum(types.get(sample.image, 1) > 1 for sample in defective) if types else None,
            )
        )
    return Statistics(
        categories=tuple(measured),
        area_ratio=_histogram("Defect area ratio", "images", areas, _AREA_EDGES),
        aspect_ratio=_histogram("Aspect ratio of the minimum bounding rectangle", "regions", aspects, _ASPECT_EDGES),
    )


def read_types(category: Category) -> dict[Path, int]:
    """Number of defect types in each image that `types.csv` in the category's folder tells of; empty without the file.

    The file has a column `image`, with paths relative to that folder, and a column for every type, in which anything
    but 0 or nothing says that the image has it.

    Raises:
        DataError: the file has no such columns, or names an image that is not there.
    """
    file = category.folder / "types.csv"
    if not file.is_file():
        return {}
    types: dict[Path, int] = {}
    for number, line in read_csv(file, ("image",)):
        where = f"{file}, line {number}"
        image = below(category.folder, line["image"], where)
        if not image.is_file():
            raise DataError(f"{where}: expected an image, found '{line['image']}'")
        marks = [cell for column, cell in line.items() if column not in ("image", None)]
        if not marks:
            raise DataError(f"{file}: expected a column for each defect type beside 'image', found none")
        types[image] = sum((mark or "").strip() not in ("", "0") for mark in marks)
    return types


def rectangle_aspect(region: np.ndarray) -> float:
    """Long side by short side, at least 1, of the smallest rectangle, turned freely, around a region.

    `region` (H, W) is true where the region is, in at least one pixel; pixels are squares, so that a single one has 1
    and a row of five has 5. One side of the smallest rectangle lies on a side of the convex hull (Freeman and
    Shapira 1975), so only those directions are tried.
    """
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(region.any(axis=1))
    left = region[rows].argmax(axis=1)
    right = region.shape[1] - region[rows, ::-1].argmax(axis=1)
    corners = np.concatenate([np.stack([rows + down, side], axis=1) for down in (0, 1) for side in (left, right)])
    hull = corners[ConvexHull(corners).vertices].astype(np.float64)
    along = np.roll(hull, -1, axis=0) - hull
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = along[:, ::-1] * (-1, 1)
    length, breadth = np.ptp(hull @ along.T, axis=0), np.ptp(hull @ across.T, axis=0)
    smallest = np.argmin(length * breadth)
    sides = sorted((length[smallest], breadth[smallest]))
    return float(sides[1] / sides[0])


class _Defect(NamedTuple):
    area_ratio: float
    aspect_ratios: list[float]  # one a region


def _measure_mask(sample: Sample, max_pixels: int) -> _Defect:
    if sample.mask is None:
        raise DataError(f"{sample.image}: expected a mask, found none")
    check_sizes(sample, max_pixels=max_pixels)
    mask = read_mask(sample.mask, more=sample.more_masks, max_pixels=max_pixels)
    labels, count = label_regions(mask)
    boxes = enumerate(bounding_boxes(labels, count), start=1)
    return _Defect(float(mask.mean()), [rectangle_aspect(labels[box] == number) for number, box in boxes])


def _mark(images: int | None) -> str:
    """A cell of Table 2: ticked with the number of images, crossed where there are none, `-` where it is not known."""
    return "-" if images is None else f"✓ {images}" if images else "✗"


def _range(numbers: Iterable[int]) -> Range | None:
    found = list(numbers)
    return Range(min(found), max(found)) if found else None


def _histogram(title: str, of: str, numbers: Sequence[float], edges: tuple[float, ...]) -> Histogram:
    # The rectangle of a turned square may come out a rounding error below 1.
    bins = np.clip(np.searchsorted(edges, numbers, side="left") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    return Histogram(title, of, edges, tuple(map(int, counts)), float(np.median(numbers)) if numbers else float("nan"))
