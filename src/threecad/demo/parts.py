"""A procedural product to try the house on: aluminium camera covers, good and defective, with exact masks.

Every part is machined from one blueprint, finished, laid into a fixture a little differently each time and seen by one
camera under one lamp. A defective part is its good twin with a changed surface, photographed with the same light and
the same sensor noise; the mask is where the two pictures differ visibly, and nothing else.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from threecad.demo.part_defects import DEFECTS
from threecad.demo.part_surface import OVERSAMPLING, SIDE, Array, Lamp, Surface, blueprint, grain, shade
from threecad.errors import DataError
from threecad.images import write_png
from threecad.records import GOOD, Split

CATEGORY = "aluminium_cover"
COMBINED = "combined"
"""The folder of parts with defects of two kinds."""

KINDS = (*DEFECTS, COMBINED)
VISIBLE = 5
"""Grey levels of 255, in any channel, above which a change is visible and belongs to the mask."""

SMALLEST = 3  # pixels of a mask
MIN_SIZE = 64  # below it a lens ring is thinner than a pixel
LAMP_AZIMUTH, LAMP_ELEVATION = math.radians(232), math.radians(52)  # from above, a little from the left


@dataclass(frozen=True, slots=True)
class Part:
    """A photographed part beside its faultless twin."""

    image: Array  # (H, W, 3) uint8
    clean: Array  # (H, W, 3) uint8, equal to `image` for a good part
    mask: Array  # (H, W) uint8, 255 where the defect shows
    kinds: tuple[str, ...]  # of its defects; empty for a good part


def write_parts(
    root: Path,
    seed: int = 0,
    *,
    train: int,
    good: int,
    defects: int,
    size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A data set in the tree of 3CAD, in `aluminium_cover/{train/good, test/good, test/KIND, ground_truth/KIND}`.

    Args:
        train: good parts to learn from.
        good: good parts among the tests.
        defects: defective parts of each of `KINDS`.
        size: height and width of the images in pixels.
        progress: called after each part with how many are done, and of how many.
    """
    folder = root / CATEGORY
    plan = [(Split.TRAIN, GOOD, train), (Split.TEST, GOOD, good), *((Split.TEST, kind, defects) for kind in KINDS)]
    total, done = sum(count for _, _, count in plan), 0
    for split, kind, count in plan:
        for index in range(count):
            part = render_part(seed, split, kind, index, size)
            paths = [(folder / split / kind, part.image)]
            if part.kinds:
                paths.append((folder / "ground_truth" / kind, part.mask))
            for place, pixels in paths:
                place.mkdir(parents=True, exist_ok=True)
                write_png(place / f"{index:03d}.png", pixels)
            done += 1
            if progress is not None:
                progress(done, total)


def render_part(seed: int, split: Split, kind: str, index: int, size: int = 256) -> Part:
    """One part, the same whenever it is asked for, whichever others were made before.

    Raises:
        DataError: `kind` is neither `good` nor one of `KINDS`, or `size` is too small to show the part.
    """
    if kind != GOOD and kind not in KINDS:
        raise DataError(f"expected one of {', '.join((GOOD, *KINDS))} as the kind of a part, found '{kind}'")
    if size < MIN_SIZE:
        raise DataError(f"expected parts of at least {MIN_SIZE} px, found {size} px")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{kind}".encode()), index])
    photograph = _Shot.of(size, rng)
    surface = blueprint(size).surface
    clean = photograph(surface)
    image, kinds = clean, _kinds(kind, rng)
    for position, name in enumerate(kinds):
        surface, image = _damaged(surface, image, name, _extent(seed, index, position), photograph, rng)
    mask = visible_change(image, clean) if kinds else np.zeros((size, size), np.uint8)
    return Part(image, clean, mask, kinds)


def visible_change(image: Array, clean: Array) -> Array:
    """Mask (H, W), 0 or 255, of all pixels where two pictures (H, W, 3) differ visibly, and of what these enclose.

    A dent or a scratch has a bright and a dark side; the line between them looks unchanged but belongs to it.
    """
    changed = _differs(image, clean)
    reach = max(1, round(3 * len(image) / SIDE))
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach + 0.5
    whole = ndimage.binary_fill_holes(ndimage.binary_closing(changed, disc)) | changed
    return np.where(whole, 255, 0).astype(np.uint8)


def _differs(image: Array, clean: Array) -> Array:
    return np.abs(image.astype(np.int16) - clean).max(axis=2) > VISIBLE


def _kinds(kind: str, rng: np.random.Generator) -> tuple[str, ...]:
    if kind == GOOD:
        return ()
    return tuple(str(name) for name in rng.choice(list(DEFECTS), 2, replace=False)) if kind == COMBINED else (kind,)


def _extent(seed: int, index: int, position: int) -> float:
    """How large a defect is to be, 0 to 1: spread evenly over the index whatever the number of parts."""
    golden = (math.sqrt(5) - 1) / 2
    return (0.05 + 0.37 * seed + golden * index + 0.5 * position) % 1


def _damaged(
    surface: Surface, image: Array, kind: str, extent: float, photograph: _Shot, rng: np.random.Generator
) -> tuple[Surface, Array]:
    """The surface with one more defect, and its picture. One that nobody can see is none: it is made anew, larger."""
    while True:
        damaged = DEFECTS[kind](surface, extent, rng)
        picture = photograph(damaged)
        if np.count_nonzero(_differs(picture, image)) >= SMALLEST:
            return damaged, picture
        extent = min(extent + 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class _Shot:
    """One part's finish, its place in the fixture, and the light and noise of its photograph."""

    size: int
    rotation: float  # radians
    shift: tuple[float, float]  # units
    lamp: Lamp  # in the frame of the part
    grain: Array  # (S, S)
    gain: Array  # (H, W, 3)
    noise: Array  # (H, W, 3) grey levels of 255

    @classmethod
    def of(cls, size: int, rng: np.random.Generator) -> _Shot:
        rotation = math.radians(rng.uniform(-1.2, 1.2))
        shift = (rng.uniform(-2, 2), rng.uniform(-2, 2))
        azimuth = LAMP_AZIMUTH + math.radians(rng.normal(0, 4))
        lamp = Lamp.at(azimuth - rotation, LAMP_ELEVATION + math.radians(rng.normal(0, 1.5)))
        axis = np.linspace(-1, 1, size, dtype=np.float32)
        u, v = axis[None, :], axis[:, None]
        # The far side is a little darker, and the lens darkens the corners. A brushed face mirrors the lamp as a
        # broad band across its brushing.
        falloff = 1 - 0.10 * (u**2 + v**2) + 0.06 * (u * math.cos(azimuth) + v * math.sin(azimuth))
        band = 0.13 * np.exp(-(((u - rng.normal(-0.15, 0.06)) / 0.6) ** 2))
        white = rng.normal(1, 0.006, 3) * rng.normal(1.12, 0.025)
        gain = (falloff + band)[..., None] * white.astype(np.float32)
        finish = grain(blueprint(size), lamp, rng)
        noise = 1.3 * rng.standard_normal((size, size, 3), np.float32)
        return cls(size, rotation, shift, lamp, finish, gain, noise)

    def __call__(self, surface: Surface) -> Array:
        """The picture (H, W, 3), uint8, of a part with this surface."""
        metal, coverage = shade(surface, self.grain, self.lamp)
        canvas = np.empty((*coverage.shape, 4), np.float32)
        canvas[..., 3] = 255 * coverage
        np.multiply(metal, canvas[..., 3:], out=canvas[..., :3])
        pixels = (np.minimum(canvas, 255, out=canvas) + 0.5).astype(np.uint8)
        # RGBX, not RGBA: the metal is already weighted by its coverage, and Pillow would weight it once more.
        placed = self._placed(Image.frombytes("RGBX", (len(pixels), len(pixels)), pixels.tobytes()))
        covered = placed[..., 3:]
        # The part shades the fixture around and below it, on the side away from the lamp most.
        pixel = self.size / SIDE
        away = (-1.5 * pixel * math.sin(LAMP_AZIMUTH), -1.5 * pixel * math.cos(LAMP_AZIMUTH))
        shadow = ndimage.shift(ndimage.gaussian_filter(covered[..., 0], 3.5 * pixel), away, order=1)
        ground = _fixture(self.size) * (1 - 0.75 * np.clip(shadow, 0, 1))[..., None]
        picture = (placed[..., :3] + (1 - covered) * ground) * self.gain * 255 + self.noise
        return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)

    def _placed(self, canvas: Image.Image) -> Array:
        """The canvas turned and shifted to where the part lies, (H, W, 4) in [0, 1] at image size."""
        middle, scale = canvas.width / 2, canvas.width / SIDE
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        x, y = middle + self.shift[0] * scale, middle + self.shift[1] * scale
        turn = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
        moved = canvas.transform(canvas.size, Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
        return np.asarray(moved.reduce(OVERSAMPLING), np.float32) / 255


@lru_cache(maxsize=2)
def _fixture(size: int) -> Array:
    """The dark plate (H, W, 3) with two locating pins that every part is laid onto."""
    axis = ((np.arange(size) + 0.5) * SIDE / size - SIDE / 2).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    rng = np.random.default_rng(3)
    plate = 0.085 + 0.006 * ndimage.gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), (0.6, 3))
    for x, y in ((-117.0, 40.0), (40.0, 113.0)):
        distance = np.hypot(u - x, v - y)
        plate = plate + 0.10 * np.clip(7 - distance, 0, 1) - 0.05 * np.clip(1 - np.abs(distance - 8) / 1.5, 0, 1)
    return plate[..., None] * np.array([0.95, 1.0, 1.06], np.float32)
