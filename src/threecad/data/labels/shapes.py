"""Shapes drawn around defects, and the pixels that they cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from threecad.errors import DataError

Point = tuple[float, float]
"""x to the right and y down, in pixels from the upper left corner."""

LINE_WIDTH_PX = 10  # of a line without a width of its own; as labelme itself makes masks of lines


@dataclass(frozen=True)
class Marked:
    """One shape in an image."""

    kind: str  # what the label says it is
    pixels: Callable[[], np.ndarray]  # (H, W) bool, drawn when asked for; raises DataError where it cannot be


@dataclass(frozen=True)
class Labelled:
    """An image and all that is marked in it; nothing is marked in a good one."""

    image: Path
    size: tuple[int, int]  # height and width
    marks: tuple[Marked, ...]

    def masks_by_kind(self) -> dict[str, np.ndarray]:
        """The pixels (H, W) bool of each kind of defect, in the order in which the kinds were marked."""
        masks: dict[str, np.ndarray] = {}
        for mark in self.marks:
            pixels = mark.pixels()
            masks[mark.kind] = masks[mark.kind] | pixels if mark.kind in masks else pixels
        return masks

    def mask(self) -> np.ndarray:
        """The pixels (H, W) bool of everything that is marked."""
        return np.logical_or.reduce([np.zeros(self.size, bool), *self.masks_by_kind().values()])


def polygon(points: Sequence[Point], size: tuple[int, int], where: str) -> np.ndarray:
    """Pixels (H, W) bool inside and on a closed outline."""
    if len(points) < 3 or _area(points) == 0:
        raise DataError(f"{where}: expected a polygon of three corners with an area, found {_said(points)}")
    return _drawn(size, where, lambda draw: draw.polygon(points, fill=1, outline=1))


def rectangle(points: Sequence[Point], size: tuple[int, int], where: str) -> np.ndarray:
    """Pixels (H, W) bool between two opposite corners."""
    if len(points) == 4:  # newer versions of labelme write all corners
        return polygon(points, size, where)
    if len(points) != 2 or points[0][0] == points[1][0] or points[0][1] == points[1][1]:
        raise DataError(f"{where}: expected a rectangle of two corners with an area, found {_said(points)}")
    (left, right), (top, bottom) = (sorted(side) for side in zip(*points, strict=True))
    return _drawn(size, where, lambda draw: draw.rectangle((left, top, right, bottom), fill=1, outline=1))


def circle(points: Sequence[Point], size: tuple[int, int], where: str) -> np.ndarray:
    """Pixels (H, W) bool in a circle, given by its centre and a point on it."""
    if len(points) != 2 or points[0] == points[1]:
        raise DataError(f"{where}: expected a circle of a centre and a point on it, found {_said(points)}")
    (x, y), radius = points[0], math.dist(*points)
    return _drawn(size, where, lambda draw: draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1))


def line(points: Sequence[Point], size: tuple[int, int], where: str, width_px: int = LINE_WIDTH_PX) -> np.ndarray:
    """Pixels (H, W) bool along a line of several points."""
    if len(points) < 2 or all(point == points[0] for point in points):
        raise DataError(f"{where}: expected a line of two different points, found {_said(points)}")
    return _drawn(size, where, lambda draw: draw.line(list(points), fill=1, width=width_px, joint="curve"))


def _drawn(size: tuple[int, int], where: str, draw: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    canvas = Image.new("1", (size[1], size[0]))
    draw(ImageDraw.Draw(canvas))
    pixels = np.asarray(canvas, bool)
    if not pixels.any():
        raise DataError(f"{where}: expected a shape in an image of {size[0]}×{size[1]} pixels, found it outside")
    return pixels


def _area(points: Sequence[Point]) -> float:
    """Area inside an outline (the shoelace formula)."""
    x, y = np.array(points, float).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _said(points: Sequence[Point]) -> str:
    shown = ", ".join(f"({x:g}, {y:g})" for x, y in points[:4])
    return f"{shown} …" if len(points) > 4 else shown or "no points"
