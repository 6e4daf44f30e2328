"""Where a part lies in its picture, and the picture moved so that the part lies where the golden part does.

    picture → offset, by phase correlation → widened by the reach and moved → network → map → moved back

The golden part is the mean of good parts that were moved onto each other. A picture is widened on all sides by as much
as a part may lie off, so that nothing of it is ever left out; beyond its edges the outermost pixels are repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from threecad.images import read_image, resize_image

MOST_PIXELS = 2**17
"""Of the golden part; offsets are found to a fraction of a pixel, so that more pixels only take longer."""

MOST_REACH = 0.1
"""Share of a side that a part is looked for at most."""

MARGIN = 1.5
"""The reach in largest offsets of the good parts."""

STEPS_A_PIXEL = 16
"""Offsets are rounded to this part of a pixel, so that the last bit of a Fourier transform changes no picture."""

EVEN_PX = 8
"""Width in pixels of the mean that is taken from each pixel: parts are placed by their edges, not by the lighting."""

FLOOR = 1e-3
"""Share of the strongest frequency below which one is noise, and counts for less."""

ROUNDS = 3
"""How often good parts are moved onto their mean."""

PARTS = 64
"""Good parts that are enough for a mean and its evidence."""

FEWEST = 8
"""Good parts without which there is neither."""

CENTRE = 0.75
"""Share of each side, in the middle, on which good parts are compared: no moved edge comes into it."""

ENOUGH = 0.5
"""Share of the differences between good parts from which they are registered: then where they lie is most of it."""


class Offset(NamedTuple):
    """How far off the golden part a part lies, in shares of its picture's height and width."""

    down: float = 0.0
    right: float = 0.0
    is_beyond: bool = False  # it fits better where parts are not looked for: this is not its place


NOWHERE_ELSE = Offset()
"""Of a part whose place is not looked for."""


@dataclass(frozen=True, eq=False)
class GoldenPart:
    """What all parts are laid upon."""

    picture: np.ndarray  # (h, w) uint8, grey
    reach: tuple[float, float]  # largest offset that is looked for, in shares of height and width

    @classmethod
    def recorded(cls, file: Path, reach: tuple[float, float] | None) -> GoldenPart | None:
        """The golden part that a run or a bundle keeps in `file`; None where it has no reach, and so no golden part.

        Raises:
            DataError: the file is missing or damaged.
        """
        return None if reach is None else cls(read_image(file)[..., 0], reach)

    @cached_property
    def _spectrum(self) -> np.ndarray:
        return _spectrum(self.picture.astype(np.float32))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its picture, at which parts are placed."""
        height, width = self.picture.shape
        return height, width

    def offset(self, pixels: np.ndarray) -> Offset:
        """Where the part in a picture (H, W, 3) uint8 of any size lies."""
        size = self.size
        within = tuple(share * side for share, side in zip(self.reach, size, strict=True))
        fits = _fits(self._spectrum, _spectrum(_grey(resize_image(pixels, size))), size)
        (rows, columns), fit = _shift(fits, within)
        return Offset(-float(rows) / size[0], -float(columns) / size[1], is_beyond=bool(fits.max() > fit))

    def widened(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of `size` with the reach on all sides."""
        height, width = (round(side * (1 + 2 * share)) for side, share in zip(size, self.reach, strict=True))
        return height, width

    def lay(self, pixels: np.ndarray, offset: Offset) -> np.ndarray:
        """A picture (H, W, 3) uint8, or a mask (H, W) of bool, widened and moved by its part's offset."""
        size, is_mask = pixels.shape[:2], pixels.dtype == bool
        reach = [share * side for share, side in zip(self.reach, size, strict=True)]
        pads = [math.ceil(2 * px) for px in reach]
        padded = np.pad(pixels, [(pad, pad) for pad in pads] + [(0, 0)] * (pixels.ndim - 2), mode="edge")
        starts = [pad - px + off * side for pad, px, off, side in zip(pads, reach, offset[:2], size, strict=True)]
        sides = [side + 2 * px for side, px in zip(size, reach, strict=True)]
        return _cut(padded, starts, sides, self.widened(size), is_mask)

    def back(self, laid: np.ndarray, offset: Offset, size: tuple[int, int]) -> np.ndarray:
        """What of a laid picture (H, W, 3) uint8, or of its map (H, W) float32, belongs to the picture, at `size`."""
        sides = [side / (1 + 2 * share) for side, share in zip(laid.shape, self.reach, strict=False)]
        starts = [(share - off) * side for share, off, side in zip(self.reach, offset[:2], sides, strict=True)]
        return _cut(laid, starts, sides, size, is_mask=False)


class Registration(NamedTuple):
    """What good parts say of where they lie."""

    golden: GoldenPart
    share: float  # of the differences between good parts, what moving them onto each other takes away

    @property
    def is_worthwhile(self) -> bool:
        """Whether most of what good parts differ by is where they lie."""
        return self.share >= ENOUGH


def register(pictures: np.ndarray) -> Registration:
    """The golden part of good parts, and what laying them upon it is worth.

    Args:
        pictures: (N, h, w, 3) uint8 of at least `FEWEST` good parts; `PARTS` are enough.
    """
    size = _golden_size(pictures.shape[1:3])
    parts = np.stack([_grey(resize_image(picture, size)) for picture in pictures])
    spectra = [_spectrum(part) for part in parts]
    mean = parts.mean(axis=0)
    golden = parts[((parts - mean) ** 2).mean(axis=(1, 2)).argmin()]
    within = (MOST_REACH * size[0], MOST_REACH * size[1])
    for _ in range(ROUNDS):
        of_golden = _spectrum(golden)
        shifts = np.stack([_shift(_fits(of_golden, spectrum, size), within)[0] for spectrum in spectra])
        shifts -= np.median(shifts, axis=0)
        moved = _moved(parts, shifts)
        golden = moved.mean(axis=0)
    # A part that is moved by a fraction of a pixel is a little smoother: that alone is no evidence.
    nearly = _moved(parts, shifts - shifts.round())
    differ = _differences(nearly)
    share = 1 - _differences(moved) / differ if differ > 0 else 0.0  # of nothing, moving takes nothing away
    farthest = MARGIN * np.abs(shifts).max(axis=0) + 1
    height, width = (min(float(px) / side, MOST_REACH) for px, side in zip(farthest, size, strict=True))
    return Registration(GoldenPart(golden.round().astype(np.uint8), (height, width)), share)


def _golden_size(size: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, math.sqrt(MOST_PIXELS / math.prod(size)))
    return round(scale * size[0]), round(scale * size[1])


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(axis=2, dtype=np.float32)


def _spectrum(grey: np.ndarray) -> np.ndarray:
    """Of a picture (h, w), without its lighting and without the edges that a Fourier transform would see."""
    from scipy import fft, ndimage

    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in grey.shape)).astype(np.float32)
    return np.asarray(fft.rfft2((grey - ndimage.gaussian_filter(grey, EVEN_PX)) * window))


def _fits(golden: np.ndarray, part: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """How well a part lies on the golden one when it is moved by each shift (h, w), around the edges.

    Phase correlation (Kuglin and Hines, 1975): the inverse transform of the difference of two spectra's phases.
    """
    from scipy import fft

    cross = golden * part.conj()
    strength = np.abs(cross)
    return np.asarray(fft.irfft2(cross / (strength + max(FLOOR * float(strength.max()), 1e-20)), s=size))


def _shift(fits: np.ndarray, within: tuple[float, ...]) -> tuple[np.ndarray, float]:
    """Rows and columns, (2,), of the best fit within so many pixels, and that fit.

    It is placed between pixels by the parabola through its neighbours.
    """
    size = fits.shape
    rows, columns = (np.abs(np.fft.fftfreq(side, 1 / side)) <= px for side, px in zip(size, within, strict=True))
    peak = np.unravel_index(np.where(np.outer(rows, columns), fits, -np.inf).argmax(), size)
    found = np.zeros(2)
    for axis, side in enumerate(size):
        before, at, after = (float(fits[_next(peak, axis, step, side)]) for step in (-1, 0, 1))
        curve = before - 2 * at + after
        between = 0.5 * (before - after) / curve if curve < 0 else 0.0
        whole = int(peak[axis]) if peak[axis] <= side // 2 else int(peak[axis]) - side
        found[axis] = np.clip(whole + np.clip(between, -0.5, 0.5), -within[axis], within[axis])
    return np.round(STEPS_A_PIXEL * found) / STEPS_A_PIXEL, float(fits[peak])


def _next(peak: tuple[np.intp, ...], axis: int, step: int, side: int) -> tuple[int, ...]:
    """The position `step` further along an axis, around the edge."""
    return tuple((int(at) + step) % side if along == axis else int(at) for along, at in enumerate(peak))


def _moved(parts: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return np.stack([ndimage.shift(one, by, order=1, mode="nearest") for one, by in zip(parts, shifts, strict=True)])


def _differences(parts: np.ndarray) -> float:
    """Mean squared difference of parts (N, h, w) from their mean, each taken as bright as the others."""
    margins = [round((1 - CENTRE) / 2 * side) for side in parts.shape[1:]]
    centre = parts[:, margins[0] : -margins[0], margins[1] : -margins[1]]
    centre = centre - centre.mean(axis=(1, 2), keepdims=True)
    return float(centre.var(axis=0).mean())


def _cut(
    pixels: np.ndarray, starts: list[float], sides: list[float], size: tuple[int, int], is_mask: bool
) -> np.ndarray:
    """A rectangle of a picture, a map or a mask, between pixels, resized to `size`."""
    box = (starts[1], starts[0], starts[1] + sides[1], starts[0] + sides[0])
    width, height = pixels.shape[1], pixels.shape[0]
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))  # but for the last bit inside
    image = Image.fromarray(pixels.astype(np.uint8) if is_mask else np.ascontiguousarray(pixels))
    rule = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
    cut = np.array(image.resize((size[1], size[0]), rule, box=box))
    return cut.astype(bool) if is_mask else cut
