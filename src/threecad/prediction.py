"""Files and folders in; a map, an overlay and a row of `predictions.csv` for each image out, at its own size.

    gather → decode (threads, in order) → network (batches) → map and overlay (threads, in order) → row

A row is appended as soon as its image is done, so that an interrupted run loses nothing and `resume` goes on. Each
image is decoded once. Memory grows with the size of the images, not with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threecad.data.loading import Progress
from threecad.errors import DataError
from threecad.images import image_size, read_image, resize_image, resize_map, write_png, write_tiff
from threecad.inputs import Input, gather
from threecad.opening import open_predictor
from threecad.overlay import Scale, overlay
from threecad.prediction_table import PredictionTable, Row
from threecad.predictor import BATCH, Found, Predictor, predict_all
from threecad.threads import ordered
from threecad.verdicts import good_share

IN_FLIGHT_BYTES = 2**28
"""Decoded pixels that wait for a batch, at most: large pictures go in smaller batches."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image on its way to the network; of a broken one only why it is."""

    source: Input
    small: np.ndarray | None = None  # (H, W, 3) uint8 at the network's image size
    whole: np.ndarray | None = None  # at its own size, where an overlay is to be drawn
    size: tuple[int, int] = (0, 0)  # its own
    error: str = ""

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        return sum(pixels.nbytes for pixels in (self.small, self.whole) if pixels is not None)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the images."""

    table: Path  # predictions.csv
    count: int  # images, broken ones and those of an earlier attempt included
    errors: list[str]  # a line for each image that could not be inspected
    has_good_share: bool


def predict_files(
    run: Path | str,
    inputs: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    maps: bool = True,
    overlays: bool = True,
    batch: int = BATCH,
    device: str | None = None,
    precision: str | None = None,
    category: str | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Summary:
    """What a run or a bundle says of images, left in the folder `out`:

        predictions.csv      a row an image, in the order of the inputs
        predictions.json     which detector, in which precision
        maps/PLACE.tiff      raw float32 values, at the image's own size
        overlays/PLACE.png   the image under its map, at its own size

    PLACE is the image's path relative to the folder that was given, or its name. A broken image gets a row with the
    reason and does not stop the others. What an earlier run has left in `out` is replaced.

    Args:
        resume: keep the rows that are there, try broken images again, and go on with the others.
        maps: write maps; likewise `overlays`.
        batch: images that go through the network together.
        device: as of `threecad.load`; likewise `precision`.
        category: whose good parts to compare with, where the run has learnt several.
        progress: called with how many images are done, and how many there are.
        notify: called with a line worth reading.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
        RunError, BundleError: a run or a bundle that cannot be loaded.
        RunError: results of another run to go on with.
        FileError: a folder that cannot be written.
    """
    images = gather(inputs, out)
    predictor = open_predictor(run, device=device, precision=precision, notify=notify)
    good = predictor.good_parts(category)
    about = {"detector_sha256": predictor.identity, "precision": predictor.precision}
    with PredictionTable(out, about, resume) as table:
        todo = [image for image in images if str(image.path) not in table.done]
        finished = len(images) - len(todo)

        def keep(one: tuple[Decoded, Found | None]) -> Row:
            row = _write(*one, good.scale, out, maps, overlays)
            return (
                row.with_good_share(good_share(row.score, good.scores))
                if row.score is not None and good.scores
                else row
            )

        for done, row in enumerate(ordered(keep, _seen(predictor, todo, batch, overlays), ahead=2), start=1):
            table.append(row)
            if progress:
                progress(finished + done, len(images))
        return Summary(table.file, len(images), table.errors, bool(good.scores))


def _seen(
    predictor: Predictor, images: Sequence[Input], batch: int, keep_whole: bool
) -> Iterator[tuple[Decoded, Found | None]]:
    """Each image with what was found in it, in order; None for a broken one."""

    def decode(image: Input) -> Decoded:
        try:
            pixels = read_image(image.path, **predictor.decoding)
        except DataError as error:
            return Decoded(image, error=str(error))
        small = resize_image(pixels, predictor.image_size)
        return Decoded(image, small, pixels if keep_whole else None, pixels.shape[:2])

    decoded = ordered(decode, images, weight=_decoded_bytes, budget=IN_FLIGHT_BYTES)
    for group in _groups(decoded, batch):
        found = predict_all(predictor.network, [one.small for one in group if one.small is not None], batch)
        for one in group:
            yield one, None if one.small is None else next(found)


def _groups(images: Iterable[Decoded], batch: int) -> Iterator[list[Decoded]]:
    """Neighbours that go through the network together: `batch` of them, fewer where they are large."""
    group: list[Decoded] = []
    for image in images:
        group.append(image)
        if len(group) == batch or sum(one.bytes for one in group) > IN_FLIGHT_BYTES:
            yield group
            group = []
    if group:
        yield group


def _decoded_bytes(image: Input) -> int:
    """Bytes of an image's pixels, told by its header."""
    try:
        height, width = image_size(image.path)
    except DataError:
        return 0  # it will be refused
    return 3 * height * width


def _write(image: Decoded, found: Found | None, scale: Scale | None, out: Path, maps: bool, overlays: bool) -> Row:
    """Map and overlay of one image, and its row."""
    name = str(image.source.path)
    if found is None:
        return Row(name, error=image.error)
    if not (math.isfinite(found.score) and np.isfinite(found.anomaly_map).all()):
        return Row(name, error=f"{name}: expected a finite score, found {found.score}; the part was not inspected")
    map_file, overlay_file = image.source.map_file, image.source.overlay_file
    if maps or overlays:
        anomaly_map = resize_map(found.anomaly_map, image.size)
        if maps:
            write_tiff(out / map_file, anomaly_map)
        if overlays and image.whole is not None:
            write_png(out / overlay_file, overlay(image.whole, anomaly_map, scale or Scale.of_map(anomaly_map)))
    return Row(name, found.score, map=map_file if maps else "", overlay=overlay_file if overlays else "")
