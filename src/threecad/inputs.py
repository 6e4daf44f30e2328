"""Which images a command is to look at, and where their results lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from threecad.data.folders import walk_images
from threecad.errors import DataError
from threecad.images import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Input:
    """An image to look at, and where it lies in the folder of results."""

    path: Path
    place: str  # relative, with forward slashes

    @property
    def map_file(self) -> str:
        """Place of its map in the folder of results."""
        return f"maps/{self.place}.tiff"

    @property
    def overlay_file(self) -> str:
        """Place of its overlay in the folder of results."""
        return f"overlays/{self.place}.png"


def gather(inputs: Sequence[Path], out: Path) -> list[Input]:
    """Every image behind `inputs`, sorted within each folder; what an earlier run left in `out` is none of them.

    An image's place is its path below the folder that was given, without its suffix; with it where two images of a
    folder differ in nothing else. An image that is given twice counts once.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
    """
    results = {(out / name).resolve() for name in ("maps", "overlays")}
    images: dict[Path, str] = {}
    for given in inputs:
        if given.is_dir():
            below = {path: path.relative_to(given).as_posix() for path in walk_images(given, results)}
            if not below:
                raise DataError(f"expected images ({', '.join(IMAGE_SUFFIXES)}) in {given} or below, found none")
            images |= {path: place for path, place in below.items() if path not in images}
        elif given.exists():
            images.setdefault(given, given.name)
        else:
            raise DataError(f"expected an image or a folder at {given}, found nothing")
    stems = [place.removesuffix(Path(place).suffix) for place in images.values()]
    count = Counter(stems)
    short = [stem if count[stem] == 1 else place for stem, place in zip(stems, images.values(), strict=True)]
    places: dict[str, Path] = {}
    for path, place in zip(images, short, strict=True):
        if place in places:
            raise DataError(
                f"two images have the same place '{place}' among the results:\n{places[place]}\n"
                f"{path}; give them in two calls with two --out"
            )
        places[place] = path
    return [Input(path, place) for place, path in places.items()]
