"""COCO: one JSON file for all images, with outlines or run lengths.

    {"images": [{"id": 1, "file_name": "NAME.png", "height": …, "width": …}],
     "categories": [{"id": 7, "name": "scratch"}],
     "annotations": [{"image_id": 1, "category_id": 7, "segmentation": [[x1, y1, x2, y2, …], …]
                                                       or {"size": [h, w], "counts": […] or "…"}}]}

An image without an annotation is good. Run lengths go down the columns, first those of the background; as text, each
is written in groups of five bits, from the fourth on as the difference to the last but one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from threecad.data.folders import images_in
from threecad.data.labels.shapes import Labelled, Marked, polygon
from threecad.data.tables import read_json
from threecad.errors import DataError
from threecad.images import image_size

FOLDERS = (".", "images", "..", "../images")  # in which images are looked for, relative to the file


def find(source: Path) -> Path | None:
    """The COCO file that `source` is, or that lies in the folder or in its `annotations`."""
    if source.is_dir():
        files = sorted([*source.glob("*.json"), *source.glob("annotations/*.json")])
        return next((file for file in files if _is_coco(file)), None)
    return source if source.suffix == ".json" and _is_coco(source) else None


def read(file: Path) -> list[Labelled]:
    """The images of the file, sorted by path, with their annotations.

    Raises:
        DataError: an image is missing or has another size, or an annotation does not fit; names it.
    """
    content = read_json(file)
    kinds = {kind.get("id"): str(kind.get("name") or "").strip() for kind in _objects(content, "categories", file)}
    images: dict[Any, tuple[Path, tuple[int, int]]] = {}
    for number, image in enumerate(_objects(content, "images", file), start=1):
        where = f"{file}, image {number}"
        if image.get("id") in images:
            raise DataError(f"{where}: expected an id of its own, found {image.get('id')} twice")
        images[image.get("id")] = _image(image, file, where)
    marks: dict[Any, list[Marked]] = {key: [] for key in images}
    for number, annotation in enumerate(_objects(content, "annotations", file), start=1):
        where = f"{file}, annotation {annotation.get('id', number)}"
        key = annotation.get("image_id")
        if key not in images:
            raise DataError(f"{where}: expected the id of an image, found {key!r}")
        kind = kinds.get(annotation.get("category_id"))
        if not kind:
            raise DataError(f"{where}: expected the id of a category, found {annotation.get('category_id')!r}")
        pixels = partial(_pixels, annotation.get("segmentation"), images[key][1], f"{where} ('{kind}')")
        marks[key].append(Marked(kind, pixels))
    _refuse_unlisted({path for path, _ in images.values()}, file)
    found = [Labelled(path, size, tuple(marks[key])) for key, (path, size) in images.items()]
    return sorted(found, key=lambda labelled: labelled.image)


def _refuse_unlisted(listed: set[Path], file: Path) -> None:
    """Raise for images beside the listed ones of which the file does not say whether they are good."""
    unlisted = [path for folder in {p.parent for p in listed} for path in images_in(folder, []) if path not in listed]
    if unlisted:
        more = f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
        raise DataError(
            f"{file}: expected all images of {unlisted[0].parent} listed, a good one without annotations\n"
            f"found {unlisted[0].name}{more} not listed; add or remove them"
        )


def _is_coco(file: Path) -> bool:
    try:
        content = read_json(file)
    except DataError:
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _objects(content: Mapping[str, Any], name: str, file: Path) -> list[dict[str, Any]]:
    found = content.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{file}: expected a list of objects called '{name}', found {str(found)[:60]}")
    return found


def _image(image: Mapping[str, Any], file: Path, where: str) -> tuple[Path, tuple[int, int]]:
    """The file of an image and its size; only its name counts where its folder is another computer's."""
    given = PurePosixPath(str(image.get("file_name") or "").replace("\\", "/"))
    relative = given if not given.is_absolute() and ".." not in given.parts else PurePosixPath(given.name)
    for place in dict.fromkeys((relative, PurePosixPath(given.name))):
        for folder in FOLDERS:
            path = file.parent / folder / place
            if given.name and path.is_file():
                size = image_size(path)
                told = (image.get("height", size[0]), image.get("width", size[1]))
                if told != size:
                    expected, found = (f"{height}×{width}" for height, width in (size, told))
                    raise DataError(f"{where}: expected {expected} as {path.name} has, found {found}")
                return path.resolve(), size
    raise DataError(f"{where}: expected '{given}' in {file.parent} or its folder 'images', found no such file")


def _pixels(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Pixels (H, W) bool of an annotation."""
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, size, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where}: expected a segmentation of outlines or run lengths, found {str(segmentation)[:60]}")
    pixels = np.zeros(size, bool)
    for outline in segmentation:
        if not isinstance(outline, list) or len(outline) % 2 or not all(isinstance(n, int | float) for n in outline):
            raise DataError(f"{where}: expected an outline of pairs of numbers, found {str(outline)[:60]}")
        pixels |= polygon(list(zip(outline[::2], outline[1::2], strict=True)), size, where)
    return pixels


def _from_run_lengths(segmentation: Mapping[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    counts = segmentation.get("counts")
    runs = _decoded(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise DataError(f"{where}: expected run lengths of whole numbers, found {str(counts)[:60]}")
    if list(segmentation.get("size") or ()) != list(size) or sum(runs) != size[0] * size[1]:
        found = f"{segmentation.get('size')} and runs of {sum(runs)} in all"
        raise DataError(f"{where}: expected run lengths over {size[0]}×{size[1]} pixels, found {found}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if not flat.any():
        raise DataError(f"{where}: expected a marked pixel, found none")
    return flat.reshape(size[1], size[0]).T


def _decoded(text: str, where: str) -> list[int]:
    """Run lengths from the text that COCO's own tools write: 6 bits a character, of which 32 says that more follow."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"{where}: expected run lengths as text, found the character {character!r} in them")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs
