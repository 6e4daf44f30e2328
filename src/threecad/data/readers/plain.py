"""A plain folder of images without a tree: all good, and for training."""

from __future__ import annotations

from pathlib import Path

from threecad.data.category import Category
from threecad.data.folders import Problem, by_stem, has_images, images_in
from threecad.records import GOOD, Sample, Split


class PlainReader:
    """Reads one category, named after the folder."""

    title = "a plain folder of good images"

    def recognises(self, root: Path) -> bool:
        """Whether images lie directly in `root`."""
        return has_images(root)

    def names(self, root: Path) -> list[str]:
        """The name of the folder."""
        return [root.resolve().name]

    def scan(self, root: Path, name: str) -> tuple[Category, list[Problem]]:
        """The images, and everything that would go missing."""
        problems: list[Problem] = []
        images = by_stem(images_in(root, problems), problems).values()
        train = tuple(Sample(path, None, name, GOOD, Split.TRAIN) for path in images)
        return Category(name, root, root, train, (), has_masks=False, is_plain=True), problems


READER = PlainReader()
