"""Labels that a factory has, as outlines in JSON beside the images, made into masks and types of defects.

Two formats are read: labelme's, a file an image, and COCO's, one file for all.
"""

from __future__ import annotations

from pathlib import Path

from threecad.data.labels import coco, labelme
from threecad.data.labels.shapes import Labelled
from threecad.errors import DataError

__all__ = ["Labelled", "are_labels", "read_labels"]


def are_labels(source: Path) -> bool:
    """Whether `source` is a file of labels, or a folder with some in it or below."""
    return labelme.recognises(source) or coco.find(source) is not None


def read_labels(source: Path) -> list[Labelled]:
    """Every image with what is marked in it, sorted by path.

    Raises:
        DataError: there are no labels, or one does not fit its image; names the file and the shape.
    """
    if labelme.recognises(source):
        return labelme.read(source)
    annotations = coco.find(source)
    if annotations is not None:
        return coco.read(annotations)
    raise DataError(
        f"expected labels in {source}: labelme files beside their images, or a COCO file; found neither\n"
        "A labelme file has 'shapes', a COCO file 'images' and 'annotations'."
    )
