"""Files and folders in; a map, an overlay and a row of `predictions.csv` for each image out, at its own size."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threecad.checkpoint import RunFolder, write_text, writing
from threecad.data.loading import Progress
from threecad.errors import DataError
from threecad.images import IMAGE_SUFFIXES, read_image, write_png, write_tiff
from threecad.inference import Found, at_size, good_share, predict
from threecad.report.overlay import Scale, overlay
from threecad.threads import ordered

COLUMNS = ("image", "score", "good_share", "map", "overlay", "error")


@dataclass(frozen=True, slots=True)
class Input:
    """An image to look at, and where it lies in the folder of results."""

    path: Path
    place: str  # relative, with forward slashes


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `predictions.csv`; of a broken image only `image` and `error`."""

    image: str
    score: float | None = None
    good_share: float | None = None
    map: str = ""
    overlay: str = ""
    error: str = ""

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        return ["" if getattr(self, name) is None else str(getattr(self, name)) for name in COLUMNS]


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the images."""

    table: Path  # predictions.csv
    rows: list[Row]
    has_good_share: bool

    @property
    def count(self) -> int:
        """Number of images, broken ones included."""
        return len(self.rows)

    @property
    def errors(self) -> list[str]:
        """A line for each image that could not be read."""
        return [row.error for row in self.rows if row.error]


def predict_files(run: Path, inputs: Sequence[Path], out: Path, progress: Progress | None = None) -> Summary:
    """What a run says of images, left in the folder `out`:

        predictions.csv      a row an image, in the order of the inputs
        maps/PLACE.tiff      raw float32 values, at the image's own size
        overlays/PLACE.png   the image under its map, at its own size

    PLACE is the image's path relative to the folder that was given, or its name. A broken image gets a row with the
    reason and does not stop the others. Memory does not grow with the number of images.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
        RunError: a run that cannot be loaded, or a folder that cannot be written.
    """
    images = gather(inputs, out)
    detector, record = RunFolder(run).load_detector()
    scale = Scale.of_good(record.good_peaks)
    rows: dict[int, Row] = {}
    looked_at: deque[int] = deque()

    def pixels() -> Iterator[np.ndarray]:
        for index, decoded in enumerate(ordered(lambda image: _decode(image, detector.config.image_size), images)):
            if isinstance(decoded, str):
                rows[index] = Row(str(images[index].path), error=decoded)
            else:
                looked_at.append(index)
                yield decoded

    def seen() -> Iterator[tuple[int, Found]]:
        for found in predict(detector, pixels(), record.precision):
            yield looked_at.popleft(), found

    def keep(one: tuple[int, Found]) -> tuple[int, Row]:
        index, found = one
        row = _write(images[index], found, scale, out)
        if record.good_scores and not row.error:
            row = replace(row, good_share=good_share(found.score, record.good_scores))
        return index, row

    for index, row in ordered(keep, seen(), ahead=4):
        rows[index] = row
        if progress:
            progress(len(rows), len(images))

    in_order = [rows[index] for index in range(len(images))]
    table = out / "predictions.csv"
    _write_table(table, in_order)
    return Summary(table, in_order, has_good_share=bool(record.good_scores))


def gather(inputs: Sequence[Path], out: Path) -> list[Input]:
    """Every image behind `inputs`, sorted within each folder; what an earlier run left in `out` is none of them.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
    """
    results = {(out / name).resolve() for name in ("maps", "overlays")}
    images: list[Input] = []
    for given in inputs:
        if given.is_dir():
            below = [Input(path, path.relative_to(given).as_posix()) for path in _walk(given, results)]
            if not below:
                raise DataError(f"expected images ({', '.join(IMAGE_SUFFIXES)}) in {given} or below, found none")
            images += below
        elif given.exists():
            images.append(Input(given, given.name))
        else:
            raise DataError(f"expected an image or a folder at {given}, found nothing")
    places: dict[str, Path] = {}
    for image in images:
        place = _place(image)
        if place in places:
            raise DataError(
                f"two images have the same place '{place}' among the results:\n{places[place]}\n"
                f"{image.path}; give them in two calls with two --out"
            )
        places[place] = image.path
    return images


def _walk(folder: Path, leave_out: set[Path]) -> Iterator[Path]:
    """Images in a folder and below it, sorted; nothing hidden, and no link to a folder is followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if path.resolve() not in leave_out:
                yield from _walk(path, leave_out)
        elif path.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir():
            yield path


def _place(image: Input) -> str:
    return image.place.removesuffix(Path(image.place).suffix)


def _decode(image: Input, size: tuple[int, int]) -> np.ndarray | str:
    """Pixels (H, W, 3) uint8 at the detector's size, or why there are none."""
    try:
        return read_image(image.path, size)
    except DataError as error:
        return str(error)


def _write(image: Input, found: Found, scale: Scale | None, out: Path) -> Row:
    """Map and overlay of one image; it is decoded once more, so that no large picture waits in memory."""
    try:
        pixels = read_image(image.path)
    except DataError as error:
        return Row(str(image.path), error=str(error))
    anomaly_map = at_size(found.anomaly_map, pixels.shape[:2])
    place = _place(image)
    map_file, overlay_file = out / "maps" / f"{place}.tiff", out / "overlays" / f"{place}.png"
    for file in (map_file, overlay_file):
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(map_file, anomaly_map)
    write_png(overlay_file, overlay(pixels, anomaly_map, scale or Scale.of_map(anomaly_map)))
    relative = [file.relative_to(out).as_posix() for file in (map_file, overlay_file)]
    return Row(str(image.path), found.score, None, *relative)


def _write_table(file: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(row.cells() for row in rows)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())
