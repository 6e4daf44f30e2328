"""The paper's Fig. 5 from the maps that a benchmark keeps: image, ground truth, and the maps of some methods.

A column a part, a row a method. Each method has one colour scale for the whole sheet, from the median of all of its
maps to their highest value. Panels are printed at 300 dots an inch, a pixel a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from threecad.benchmark.tables import in_order
from threecad.errors import RunError, SettingsError, did_you_mean
from threecad.files import replacing
from threecad.methods import METHODS
from threecad.overlay import Scale, colour

PANEL, GAP, MARGIN, TEXT = 256, 8, 250, 34
"""Sides of a panel, of the space between two, and of the left margin, and height of the letters, in pixels."""

DPI = 300
MOST = 8
"""Parts on a sheet, as in the paper."""

Maps = dict[str, dict[str, np.ndarray]]  # by part (CATEGORY/PLACE), then `image`, `mask`, `map`


def draw_sheet(folders: Sequence[Path], file: Path, methods: Sequence[str] = ()) -> None:
    """Write the sheet of some methods, of all without any, as PNG or PDF.

    Raises:
        SettingsError: a file of another kind, or a method that was not run.
        RunError: no maps, or a file of maps that is damaged.
    """
    if file.suffix.lower() not in (".png", ".pdf"):
        raise SettingsError(f"expected a file that ends in .png or .pdf for the sheet, found {file}")
    maps = read_maps(folders)
    for method in methods:
        if method not in maps:
            raise SettingsError(f"no maps of '{method}' in {folders[0]}{did_you_mean(method, maps)}")
    chosen = {method: maps[method] for method in methods or _in_order(maps)}
    sheet = _compose(chosen, _parts(chosen))
    with replacing(file) as temporary:
        sheet.save(temporary, dpi=(DPI, DPI), resolution=DPI)


def read_maps(folders: Sequence[Path]) -> dict[str, Maps]:
    """The maps of each method (with its variant), of the lowest seed that was run."""
    found: dict[str, Maps] = {}
    files = sorted(file for folder in folders for file in (folder / "maps").rglob("*.npz"))
    if not files:
        raise RunError(
            f"expected maps of a benchmark in {folders[0] / 'maps'}, found none; `threecad benchmark` makes them"
        )
    for file in files:
        of_method = found.setdefault(file.parents[1].name, {})
        try:
            with np.load(file, allow_pickle=False) as arrays:
                for name in arrays.files:
                    part, _, kind = name.rpartition("/")
                    of_method.setdefault(part, {}).setdefault(kind, arrays[name])
        except (OSError, ValueError, BadZipFile) as error:
            raise RunError(f"{file} is damaged: {error}; remove its row and run the benchmark again") from None
    return found


def _parts(chosen: dict[str, Maps]) -> list[str]:
    """The parts that all methods were run on, at most `MOST`, from all categories in turn."""
    common = sorted(set.intersection(*(set(maps) for maps in chosen.values())))
    if not common:
        raise RunError(f"{', '.join(chosen)} have no part in common; name methods that were run on the same categories")
    by_category: dict[str, list[str]] = {}
    for part in common:
        by_category.setdefault(part.rpartition("/")[0], []).append(part)
    turns = max(map(len, by_category.values()))
    in_turn = [parts[turn] for turn in range(turns) for parts in by_category.values() if turn < len(parts)]
    return sorted(in_turn[:MOST])


def _compose(chosen: dict[str, Maps], parts: Sequence[str]) -> Image.Image:
    first = next(iter(chosen.values()))
    rows: list[tuple[str, list[np.ndarray]]] = [
        ("image", [first[part]["image"] for part in parts]),
        ("ground truth", [np.repeat(255 * first[part]["mask"][..., None], 3, axis=2) for part in parts]),
    ]
    for method, maps in chosen.items():
        scale = _scale([maps[part]["map"] for part in parts])
        rows.append((_title(method), [colour(maps[part]["map"], scale) for part in parts]))
    step = PANEL + GAP
    sheet = Image.new("RGB", (MARGIN + len(parts) * step, len(rows) * step + TEXT + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for row, (label, panels) in enumerate(rows):
        draw.text((MARGIN - 2 * GAP, row * step + PANEL // 2), label, "black", font, anchor="rm", align="right")
        for column, panel in enumerate(panels):
            height, width = first[parts[column]]["image"].shape[:2]  # the part's own shape; a mask may be squashed
            shaped = Image.fromarray(panel).resize((width, height), Image.Resampling.LANCZOS)
            framed = ImageOps.pad(shaped, (PANEL, PANEL), Image.Resampling.LANCZOS, "white")
            sheet.paste(framed, (MARGIN + column * step, row * step))
    small = ImageFont.load_default(TEXT * 2 // 3)
    for column, part in enumerate(parts):
        middle = MARGIN + column * step + PANEL // 2
        draw.text((middle, len(rows) * step), part.rpartition("/")[0], "black", small, anchor="ma")
    return sheet


def _in_order(lines: Iterable[str]) -> list[str]:
    """Methods, with their variants, in the paper's order."""
    order = in_order({line.partition("+")[0] for line in lines})
    return sorted(lines, key=lambda line: (order.index(line.partition("+")[0]), line))


def _title(line: str) -> str:
    """`CFRG (ours)`, with the variant beneath it."""
    method, _, rest = line.partition("+")
    return "\n".join(filter(None, (METHODS.paper(method).name, rest.replace("+", "\n"))))


def _scale(maps: Sequence[np.ndarray]) -> Scale:
    """One scale for all maps of a method."""
    return Scale.of_map(np.concatenate([one.ravel() for one in maps]))
