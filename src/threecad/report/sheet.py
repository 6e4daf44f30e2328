"""The paper's Fig. 5: image, ground truth, and the maps of some methods; a column a part, a row a method.

Each method has one colour scale for the whole sheet, from the median of all of its maps to their highest value. Panels
are printed at 300 dots an inch, a pixel a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from threecad.errors import RunError
from threecad.overlay import Scale, colour
from threecad.records import Sample

if TYPE_CHECKING:
    from threecad.evaluation import Seen

PANEL, GAP, MARGIN, TEXT = 256, 8, 250, 34
"""Long side of a part, space between two, least left margin, and height of the letters, in pixels."""

DPI = 300
MOST = 8
"""Parts on a sheet, as in the paper."""

FROM_CATEGORY = 4
"""Defective test images of each category that may stand on a sheet."""

Maps = dict[str, dict[str, np.ndarray]]
"""By part (CATEGORY/PLACE): `image` as the network saw it, `size` of the picture, `mask` if there is one, `map`."""


class SheetParts:
    """A few defective test images of each category, evenly spread, with what was found in them.

    Attributes:
        chosen: their files and places.
        maps: what is known of those that were seen, by place.
    """

    def __init__(self, tests: Iterable[Sequence[Sample]], each: int = FROM_CATEGORY) -> None:
        self.chosen: dict[Path, str] = {}
        for test in tests:
            defects = [sample for sample in test if sample.is_defect]
            places = np.unique(np.linspace(0, len(defects) - 1, min(each, len(defects))).round().astype(int))
            for place in places:
                self.chosen[defects[place].image] = f"{defects[place].category}/{place:06d}"
        self.maps: Maps = {}

    def add(self, seen: Seen) -> None:
        """Keep the image, its mask and its map, if it is one of the few."""
        place = self.chosen.get(seen.sample.image)
        if place is not None:
            self.maps[place] = {
                "image": np.array(seen.pixels),
                "size": np.array(seen.found.size),
                "map": np.array(seen.found.anomaly_map, np.float32),
            }
            if seen.sample.mask is not None:
                self.maps[place]["mask"] = np.array(seen.mask, np.uint8)


def compose(rows: Mapping[str, Maps]) -> Image.Image:
    """The sheet of the parts that all rows have, at most `MOST`, from all categories in turn.

    Args:
        rows: maps by the title of their row; a title may have several lines.

    Raises:
        RunError: there is no such part.
    """
    parts = _parts(rows)
    first = next(iter(rows.values()))
    panels = [("image", [first[part]["image"] for part in parts]), ("ground truth", [_truth(first[p]) for p in parts])]
    for title, maps in rows.items():
        scale = Scale.of_map(np.concatenate([maps[part]["map"].ravel() for part in parts]))
        panels.append((title, [colour(maps[part]["map"], scale) for part in parts]))
    shapes = [_fitted(*_size(first[part])) for part in parts]
    box = max(width for width, _ in shapes), max(3 * TEXT, *(height for _, height in shapes))
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT * 2 // 3)
    margin = max(MARGIN, *(round(_width(title, font)) + 3 * GAP for title, _ in panels))
    right, down = box[0] + GAP, box[1] + GAP
    sheet = Image.new("RGB", (margin + len(parts) * right, len(panels) * down + TEXT + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, pictures) in enumerate(panels):
        draw.text((margin - 2 * GAP, row * down + box[1] // 2), title, "black", font, anchor="rm", align="right")
        for column, (picture, shape) in enumerate(zip(pictures, shapes, strict=True)):
            shaped = Image.fromarray(picture).resize(shape, Image.Resampling.LANCZOS)
            sheet.paste(ImageOps.pad(shaped, box, color="white"), (margin + column * right, row * down))
    for column, part in enumerate(parts):
        middle = margin + column * right + box[0] // 2
        draw.text((middle, len(panels) * down), part.rpartition("/")[0], "black", small, anchor="ma")
    return sheet


def _parts(rows: Mapping[str, Maps]) -> list[str]:
    common = sorted(set.intersection(*(set(maps) for maps in rows.values())))
    if not common:
        titles = ", ".join(title.replace("\n", ", ") for title in rows)
        raise RunError(f"{titles} have no part in common; name methods that were run on the same categories")
    by_category: dict[str, list[str]] = {}
    for part in common:
        by_category.setdefault(part.rpartition("/")[0], []).append(part)
    turns = max(map(len, by_category.values()))
    in_turn = [parts[turn] for turn in range(turns) for parts in by_category.values() if turn < len(parts)]
    return sorted(in_turn[:MOST])


def _size(part: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Height and width of the picture itself; of what the network saw where an older benchmark has kept no more."""
    height, width = part.get("size", part["image"].shape[:2])
    return int(height), int(width)


def _fitted(height: int, width: int) -> tuple[int, int]:
    """Width and height of a part whose long side is `PANEL`."""
    return round(PANEL * min(1.0, width / height)), round(PANEL * min(1.0, height / width))


def _truth(part: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mask in black and white; the darkened image where nobody knows."""
    if "mask" not in part:
        return part["image"] // 3
    return np.repeat(255 * part["mask"][..., None], 3, axis=2)


def _width(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return max(font.getlength(line) for line in title.split("\n"))
