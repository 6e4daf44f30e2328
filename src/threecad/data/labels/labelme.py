"""labelme: a JSON file beside each image, with the shapes that were drawn.

    NAME.json    {"imagePath": "NAME.png", "imageHeight": …, "imageWidth": …,
                  "shapes": [{"label": "scratch", "shape_type": "polygon", "points": [[x, y], …]}]}

Shapes are polygon, rectangle, circle, line, linestrip and mask. `imagePath` may lead anywhere on the labeller's own
computer, with either kind of slashes: the image is looked for by its name beside the JSON file. An image without a
JSON file, or without shapes, is good.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from threecad.data.folders import walk_images
from threecad.data.labels.shapes import Labelled, Marked, Point, circle, line, polygon, rectangle
from threecad.data.tables import read_json
from threecad.errors import DataError
from threecad.images import IMAGE_SUFFIXES, image_size

_SHAPES: dict[str, Callable[[list[Point], tuple[int, int], str], np.ndarray]] = {
    "polygon": polygon,
    "rectangle": rectangle,
    "circle": circle,
    "line": line,
    "linestrip": line,
}


def recognises(source: Path) -> bool:
    """Whether a labelme file lies in the folder or below it."""
    return source.is_dir() and any(_is_labelme(file) for file in source.rglob("*.json"))


def read(source: Path) -> list[Labelled]:
    """Every image in the folder and below it, sorted, with its shapes.

    Raises:
        DataError: a file or a shape in it does not fit; names both.
    """
    labelled: dict[Path, Labelled] = {}
    for file in filter(_is_labelme, sorted(source.rglob("*.json"))):
        content = read_json(file)
        image = _image_of(file, content)
        if image in labelled:
            raise DataError(f"{file}: expected one file of labels for {image.name}, found another before it")
        labelled[image] = _labelled(image, file, content)
    for image in walk_images(source):
        if image not in labelled:
            labelled[image] = Labelled(image, image_size(image), ())
    return [labelled[image] for image in sorted(labelled)]


def read_file(file: Path) -> Labelled:
    """The image of one labelme file, with its shapes.

    Raises:
        DataError: the file or a shape in it does not fit; names both.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "shapes" not in content:
        raise DataError(f"{file}: expected a labelme file with shapes, found another JSON file")
    return _labelled(_image_of(file, content), file, content)


def _is_labelme(file: Path) -> bool:
    """Whether a JSON file is labelme's; one that cannot be read counts, so that it is not left out unsaid."""
    try:
        content = read_json(file)
    except DataError:
        return any(file.with_suffix(suffix).exists() for suffix in IMAGE_SUFFIXES)
    return isinstance(content, dict) and "shapes" in content


def _image_of(file: Path, content: Any) -> Path:
    given = str(content.get("imagePath") or "").replace("\\", "/")
    candidates = [file.parent / PurePosixPath(given).name] if given else []
    candidates += [file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    for candidate in candidates:
        if candidate.is_file() and candidate.suffix.lower() in IMAGE_SUFFIXES:
            return candidate
    raise DataError(f"{file}: expected its image '{PurePosixPath(given).name or file.stem}' beside it, found none")


def _labelled(image: Path, file: Path, content: Any) -> Labelled:
    size = image_size(image)
    told = (content.get("imageHeight") or size[0], content.get("imageWidth") or size[1])
    if told != size:
        raise DataError(
            f"{file}: expected labels of {image.name}, {size[0]}×{size[1]}, found some for {told[0]}×{told[1]} pixels"
        )
    if not isinstance(content["shapes"], list):
        raise DataError(f"{file}: expected a list of shapes, found {type(content['shapes']).__name__}")
    marks = [_marked(shape, size, f"{file}, shape {number}") for number, shape in enumerate(content["shapes"], start=1)]
    return Labelled(image, size, tuple(marks))


def _marked(shape: Any, size: tuple[int, int], where: str) -> Marked:
    if not isinstance(shape, dict) or not str(shape.get("label") or "").strip():
        raise DataError(f"{where}: expected a label that names the defect, found none")
    kind = str(shape["label"]).strip()
    where = f"{where} ('{kind}')"
    drawn_as = shape.get("shape_type") or "polygon"  # as files of early versions mean it
    points = _points(shape.get("points"), where)
    if drawn_as == "mask":
        return Marked(kind, partial(_mask, shape.get("mask"), points, size, where))
    if drawn_as not in _SHAPES:
        raise DataError(f"{where}: expected one of {', '.join([*_SHAPES, 'mask'])}, found '{drawn_as}'")
    return Marked(kind, partial(_SHAPES[drawn_as], points, size, where))


def _points(given: Any, where: str) -> list[Point]:
    try:
        points = [(float(x), float(y)) for x, y in given]
    except (TypeError, ValueError):
        points = []
    if not points or not all(math.isfinite(number) for point in points for number in point):
        raise DataError(f"{where}: expected points of two numbers each, found {str(given)[:60]}")
    return points


def _mask(encoded: Any, points: list[Point], size: tuple[int, int], where: str) -> np.ndarray:
    """Pixels (H, W) bool of a picture that lies between two corners, both of which it covers."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=["PNG"]) as picture:
            patch = np.asarray(picture.convert("L")) > 0
    except (TypeError, ValueError, OSError, Image.DecompressionBombError):
        raise DataError(f"{where}: expected a mask as a PNG picture in base64, found something else") from None
    left, top = (math.floor(min(side)) for side in zip(*points, strict=True))
    height, width = patch.shape
    if not patch.any() or top < 0 or left < 0 or top + height > size[0] or left + width > size[1]:
        raise DataError(
            f"{where}: expected a mask with marked pixels inside {size[0]}×{size[1]}, "
            f"found {height}×{width} at ({left}, {top}), {int(patch.sum())} of them marked"
        )
    pixels = np.zeros(size, bool)
    pixels[top : top + height, left : left + width] = patch
    return pixels
