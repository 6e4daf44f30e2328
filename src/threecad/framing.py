"""What of a picture a network sees, and where on the picture its maps belong.

    picture → laid upon the golden part → region of interest (the rest painted over) → frames: tiles and the whole
            → network → maps → one map → moved back

Each step is taken where a fit has asked for it. No method knows of them: it sees frames, all of one size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from threecad.errors import DataError
from threecad.images import Decoding, limit_of, read_mask, resize_image, resize_map
from threecad.registration import NOWHERE_ELSE, GoldenPart, Offset

LEAST_WEIGHT = 1e-3
"""Weight of a tile's outermost pixel, where the Hann window itself is 0 and may be the only one."""

LEAST_TILE_PX = 16
"""Of a smaller tile a network of the usual strides sees one feature."""


class Box(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Tiles:
    """How a picture is cut: into a `grid` (rows, columns), or into squares of `side_px`."""

    grid: tuple[int, int] | None = None
    side_px: int | None = None
    overlap: float = 0.25  # of neighbours, as a share of a tile
    whole: bool = True  # the whole picture goes through as well, so that large defects are seen
    each: bool = field(default=False, repr=False)  # a detector for each of a grid's frames, which are the same then

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Tiles | None:
        """What the table [data] of a run's settings says of tiles; None where it asks for none."""
        grid, side_px = data.get("tiles"), data.get("tile_px")
        if grid is None and side_px is None:
            return None
        return cls(grid and (grid[0], grid[1]), side_px, data["tile_overlap"], data["whole"], data.get("each", False))

    @property
    def frames(self) -> int:
        """How many frames every picture has that is cut into a grid."""
        rows, columns = self.grid or (1, 1)
        return rows * columns + self.whole

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """The tiles of a picture of `size` (height, width), row by row; together they cover it.

        Raises:
            DataError: a tile would be larger than the picture, or tiny.
        """
        (top, height), (left, width) = (self._along(axis, length) for axis, length in enumerate(size))
        return [Box(row, column, height, width) for row in top for column in left]

    def _along(self, axis: int, length: int) -> tuple[list[int], int]:
        """Starts and length of the tiles along one side of a picture."""
        if self.grid is not None:
            count = self.grid[axis]
            side = math.ceil(length / (count - (count - 1) * self.overlap))
            if side < LEAST_TILE_PX:
                raise DataError(
                    f"expected tiles of at least {LEAST_TILE_PX} px, found {side} px: {count} in {length} px; "
                    "choose fewer data.tiles"
                )
        else:
            side = self.side_px or length
            if side > length:
                raise DataError(
                    f"expected tiles no larger than the picture, found {side} px in {length} px; "
                    "choose another data.tile_px, or a grid with data.tiles"
                )
            count = 1 + math.ceil((length - side) / max(side * (1 - self.overlap), 1))
        return [round(start) for start in np.linspace(0, length - side, count)], side


@dataclass(frozen=True, eq=False)
class Region:
    """The region of interest: what lies outside is painted over, and has no map and no score."""

    mask: np.ndarray  # (h, w) of bool
    fill: tuple[int, int, int] = (128, 128, 128)  # the good parts' mean colour
    is_exact: bool = True  # made for pictures of the mask's own size; else it is stretched to any

    @classmethod
    def recorded(
        cls, file: Path, fill: tuple[int, int, int] | None, is_exact: bool, decoding: Decoding
    ) -> Region | None:
        """The region that a run or a bundle keeps in `file`; None where it has no fill colour, and so no region.

        Raises:
            DataError: the file is missing or damaged.
        """
        if fill is None:
            return None
        return cls(read_mask(file, **limit_of(decoding)).astype(bool), fill, is_exact)

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """The mask (H, W) of bool at `size`.

        Raises:
            DataError: it was made for pictures of another size.
        """
        if self.mask.shape == tuple(size):
            return self.mask
        if self.is_exact:
            height, width = self.mask.shape
            raise DataError(
                f"expected a picture of the size of its region of interest, {height}×{width}, found {size[0]}×{size[1]}"
            )
        return _nearest(self.mask, size)


class Frames(NamedTuple):
    """What a network sees of one picture."""

    pixels: np.ndarray  # (F, h, w, 3) uint8
    size: tuple[int, int]  # of the picture: height and width
    offset: Offset = NOWHERE_ELSE  # of its part from the golden one


@dataclass(frozen=True, eq=False)
class Framing:
    """From a picture to the frames that a network sees, and from their maps back to the picture's."""

    image_size: tuple[int, int]  # of a frame, as the network takes it
    region: Region | None = None
    tiles: Tiles | None = None
    golden: GoldenPart | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a picture is one frame and its score the network's own."""
        return self.region is None and self.tiles is None

    @property
    def only_resizes(self) -> bool:
        """Whether the one frame of a picture is the picture as it came, at the network's size."""
        return self.is_plain and self.golden is None

    @property
    def places(self) -> int:
        """How many frames of a picture have a network of their own, and go through together; 1 where all share one."""
        return self.tiles.frames if self.tiles is not None and self.tiles.each else 1

    @cached_property
    def key(self) -> str:
        """Another text for every framing that gives other frames of a picture."""
        region = self.region and (self.region.mask.shape, self.region.mask.tobytes().hex(), self.region.fill)
        golden = self.golden and (self.golden.picture.shape, self.golden.picture.tobytes().hex(), self.golden.reach)
        return hashlib.sha256(repr((self.image_size, self.tiles, region, golden)).encode()).hexdigest()

    def laid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of `size` once it is laid upon the golden part; its own without one."""
        return size if self.golden is None else self.golden.widened(size)

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """What of a picture of `size`, once it is laid, each frame shows, the whole picture last."""
        size = self.laid_size(size)
        whole = Box(0, 0, *size)
        if self.tiles is None:
            return [whole]
        return self.tiles.boxes(size) + ([whole] if self.tiles.whole else [])

    def kinds(self, size: tuple[int, int]) -> list[str]:
        """What shares units, for each frame of a picture of `size`: `tile` or `whole`, or one of the places."""
        boxes = self.boxes(size)
        if self.places > 1:
            return [f"place {place}" for place in range(1, len(boxes) + 1)]
        return ["whole" if box[2:] == tuple(self.laid_size(size)) else "tile" for box in boxes]

    def frames(self, pixels: np.ndarray) -> Frames:
        """What a network sees of a picture (H, W, 3) uint8.

        Raises:
            DataError: the picture is smaller than a tile, or of another size than its region.
        """
        size, offset = pixels.shape[:2], NOWHERE_ELSE
        if self.golden is not None:
            offset = self.golden.offset(pixels)
            pixels = self.golden.lay(pixels, offset)
        inside = self._inside(size)
        if self.region is not None and inside is not None:
            pixels = np.where(inside[..., None], pixels, np.array(self.region.fill, np.uint8))
        boxes = self.boxes(size)
        frames = np.stack([resize_image(pixels[box.rows, box.columns], self.image_size) for box in boxes])
        return Frames(frames, size, offset)

    def shown(self, frame: np.ndarray, offset: Offset) -> np.ndarray:
        """What a frame (h, w, 3) uint8 of the whole shows of its picture, (h, w, 3) uint8, where the picture has it."""
        return frame if self.golden is None else self.golden.back(frame, offset, self.image_size)

    def inside(self, size: tuple[int, int]) -> np.ndarray | None:
        """Where in each frame of a picture of `size` the region of interest is, (F, h, w) of bool; None without one."""
        mask = self._inside(size)
        if mask is None:
            return None
        return np.stack([_nearest(mask[box.rows, box.columns], self.image_size) for box in self.boxes(size)])

    def _inside(self, size: tuple[int, int]) -> np.ndarray | None:
        """Where in a picture of `size`, once it is laid, the region of interest is: it lies where the golden part does.

        Raises:
            DataError: it was made for pictures of another size.
        """
        if self.region is None:
            return None
        mask = self.region.at(size)
        return mask if self.golden is None else self.golden.lay(mask, NOWHERE_ELSE)

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at which a tile of a picture of `size` is as large as a frame, but no more than the picture's."""
        box = self.boxes(size)[0]
        shares = (min(1.0, frame / side) for frame, side in zip(self.image_size, box[2:], strict=True))
        height, width = (max(1, round(side * share)) for side, share in zip(size, shares, strict=True))
        return height, width

    def join(
        self,
        maps: Sequence[np.ndarray],
        size: tuple[int, int],
        target: tuple[int, int] | None = None,
        offset: Offset = NOWHERE_ELSE,
    ) -> np.ndarray:
        """The map of a picture of `size` from those of its frames, resized to `target` if given.

        Tiles are blended by a Hann window; of that and the map of the whole, the higher counts. Outside the region of
        interest the map has its least value.
        """
        target = target or size
        laid = self._joined(maps, size, self.laid_size(target))
        return laid if self.golden is None else self.golden.back(laid, offset, target)

    def _joined(self, maps: Sequence[np.ndarray], size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """The map at `target` of a picture of `size` as it was laid."""
        laid = self.laid_size(size)
        scale = target[0] / laid[0], target[1] / laid[1]
        boxes = [_scaled(box, scale, target) for box in self.boxes(size)]
        tiled = boxes if self.tiles is None or not self.tiles.whole else boxes[:-1]
        joined = _blended(maps[: len(tiled)], tiled, target)
        if len(boxes) > len(tiled):
            joined = np.maximum(joined, resize_map(maps[-1], target))
        mask = self._inside(size)
        if mask is not None:
            inside = _nearest(mask, target)
            joined = np.where(inside, joined, joined[inside].min() if inside.any() else joined.min())
        return joined


@dataclass(frozen=True)
class MapUnits:
    """Centre and spread of the peaks of good parts' maps: what makes maps of tiles and of the whole comparable."""

    centre: float
    spread: float

    @cached_property
    def least(self) -> float:
        """The smallest spread that is divided by."""
        return max(self.spread, 1e-6 * abs(self.centre), 1e-12)

    def apply(self, anomaly_map: np.ndarray) -> np.ndarray:
        """The map in spreads above the good parts' peaks."""
        return ((anomaly_map - self.centre) / self.least).astype(np.float32)


def _blended(maps: Sequence[np.ndarray], boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray:
    if len(boxes) == 1 and boxes[0][2:] == tuple(size):
        return resize_map(maps[0], size)
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for anomaly_map, box in zip(maps, boxes, strict=True):
        window = np.outer(_hann(box.height), _hann(box.width)).astype(np.float32)
        total[box.rows, box.columns] += window * resize_map(anomaly_map, (box.height, box.width))
        weights[box.rows, box.columns] += window
    return total / weights


def _hann(length: int) -> np.ndarray:
    return np.maximum(np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2, LEAST_WEIGHT)


def _scaled(box: Box, scale: tuple[float, float], target: tuple[int, int]) -> Box:
    """The box on a picture of another size; edges that were shared stay shared."""
    top, left = math.floor(box.top * scale[0]), math.floor(box.left * scale[1])
    bottom = min(math.ceil((box.top + box.height) * scale[0]), target[0])
    right = min(math.ceil((box.left + box.width) * scale[1]), target[1])
    return Box(top, left, bottom - top, right - left)


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask.shape == tuple(size):
        return mask
    image = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.array(image).astype(bool)
