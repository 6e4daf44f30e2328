"""Whether an image can be a picture of a part at all: lit, exposed and sized as the good parts' images were.

A cap on the lens or a lamp that failed gives an image without any defect in it, and a map that may be calm. The checks
are wide: they ask for REVIEW where an image lies far outside everything that good parts showed, and never say NG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

DARK, BRIGHT = 5, 250
"""Grey levels of a pixel up to which it counts as black, and from which as saturated."""

LEAST_MARGIN = 40.0
"""Grey levels by which mean brightness may leave the good images' range, however narrow that is: a large defect, such
as a quarter of the part torn away, is to be rejected for its score and not set aside for its brightness."""

SIDE = 512
"""Pixels a side that are looked at, about: of a larger image every second one, every third, …"""

CONTRAST_LEFT = 1 / 3
"""Share of the good images' lowest contrast that must remain."""


class Look(NamedTuple):
    """What an image looks like from afar."""

    height: int  # px
    width: int
    brightness: float  # mean grey level
    contrast: float  # standard deviation of grey levels
    dark: float  # share of pixels that are black
    bright: float  # share of pixels that are saturated


def look(pixels: np.ndarray) -> Look:
    """The look of pixels (H, W, 3) or (H, W) uint8."""
    height, width = pixels.shape[:2]
    step = max(math.isqrt(height * width) // SIDE, 1)
    seen = pixels[::step, ::step]
    grey = seen.reshape(*seen.shape[:2], -1).mean(axis=2, dtype=np.float32)
    dark, bright = float((grey <= DARK).mean()), float((grey >= BRIGHT).mean())
    return Look(height, width, float(grey.mean()), float(grey.std()), dark, bright)


class GoodLooks(NamedTuple):
    """Lowest and highest of each number over the good images."""

    lowest: Look
    highest: Look

    @classmethod
    def of(cls, looks: Iterable[Look]) -> GoodLooks:
        """Of at least one good image."""
        return cls.joined([cls(one, one) for one in looks])

    @classmethod
    def joined(cls, several: Sequence[GoodLooks]) -> GoodLooks:
        """Of the images of all of these, at least one."""
        lowest = zip(*(one.lowest for one in several), strict=True)
        highest = zip(*(one.highest for one in several), strict=True)
        return cls(Look(*map(min, lowest)), Look(*map(max, highest)))


def plausible(pixels: np.ndarray, good: GoodLooks) -> str | None:
    """None for an image that may show a part; else why not, in a few words.

    Args:
        pixels: (H, W, 3) or (H, W) uint8, at the image's own size, as those that `good` was taken from.
    """
    seen, low, high = look(pixels), good.lowest, good.highest
    for side in ("height", "width"):
        least, most = getattr(low, side), getattr(high, side)
        if not least - (most - least) <= getattr(seen, side) <= most + (most - least):
            sizes = f"{low.height}×{low.width}"
            if low[:2] != high[:2]:
                sizes += f" to {high.height}×{high.width}"
            return f"the image is {seen.height}×{seen.width} px, good ones are {sizes}"
    if seen.contrast < CONTRAST_LEFT * low.contrast:
        return "the image is blank"
    if seen.dark > _half_way_to_all(high.dark):
        return "the image is black"
    if seen.bright > _half_way_to_all(high.bright):
        return "the image is saturated"
    margin = max(high.brightness - low.brightness, LEAST_MARGIN)
    if seen.brightness < low.brightness - margin:
        return "the image is darker than every good one"
    if seen.brightness > high.brightness + margin:
        return "the image is brighter than every good one"
    return None


def _half_way_to_all(share: float) -> float:
    return (share + 1) / 2
