"""Files and folders in; a verdict, a map, an overlay and a row of `predictions.csv` for each image out.

    gather → decode (threads, in order) → network (batches) → map and overlay (threads, in order) → row

A row is appended as soon as its image is done, so that an interrupted run loses nothing and `resume` goes on. Each
image is decoded once. Memory grows with the size of the images, not with their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threecad.data.hashes import Progress
from threecad.errors import DataError
from threecad.images import MAX_PIXELS, image_size, read_image, write_png, write_tiff
from threecad.inputs import Input, gather
from threecad.opening import open_predictor
from threecad.overlay import Scale, overlay
from threecad.prediction_table import PredictionTable, Row
from threecad.predictor import BATCH, Found, Predictor
from threecad.threads import ordered
from threecad.verdicts import Region, Verdicts

IN_FLIGHT_BYTES = 2**28
"""Decoded pixels that wait for a batch, at most: large pictures go in smaller batches."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image on its way to the network; of a broken one only why it is."""

    source: Input
    frames: np.ndarray | None = None  # (F, h, w, 3) uint8, what the network sees
    whole: np.ndarray | None = None  # at its own size, where an overlay is to be drawn
    size: tuple[int, int] = (0, 0)  # its own
    doubt: str | None = None  # why it cannot be a picture of a part
    error: str = ""

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        return sum(pixels.nbytes for pixels in (self.frames, self.whole) if pixels is not None)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the images."""

    table: Path  # predictions.csv
    count: int  # images, broken ones and those of an earlier attempt included
    errors: list[str]  # a line for each image that could not be inspected
    verdicts: Counter[str]  # how many images got OK, REVIEW, NG
    can_judge: bool  # whether any could get another verdict than REVIEW


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
    max_pixels: int | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Summary:
    """What a run or a bundle says of images, left in the folder `out`:

        predictions.csv      a row an image, in the order of the inputs
        regions.jsonl        a line an image: boxes, areas and peaks of what good parts do not have
        predictions.json     which detector, good parts and budgets
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
        max_pixels: pixels of the largest image that is read; without, what the fit has set.
        progress: called with how many images are done, and how many there are.
        notify: called with a line worth reading.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
        RunError, BundleError: a run or a bundle that cannot be loaded.
        RunError: results of another run to go on with.
        SettingsError: a category that was not learnt, or several and none is named.
        FileError: a folder that cannot be written.
    """
    images = gather(inputs, out)
    predictor = open_predictor(run, device=device, precision=precision, notify=notify)
    if max_pixels is not None:
        predictor = replace(predictor, decoding={**predictor.decoding, "max_pixels": max_pixels})
    verdicts = predictor.verdicts
    category = verdicts.good.category(category)
    scale = Scale.of_good(verdicts, category)
    about = {**predictor.conditions, "good_parts": len(verdicts.good.of(category)), **verdicts.settings.model_dump()}
    with PredictionTable(out, about, resume) as table:
        todo = [image for image in images if str(image.path) not in table.done]
        finished = len(images) - len(todo)

        def keep(one: tuple[Decoded, Found | None]) -> tuple[Row, list[Region]]:
            image, found = one
            row, regions = _judge(image, found, verdicts, category)
            if found is None or row.error:
                return row, regions
            map_file, overlay_file = _write(image, found, scale, out, maps, overlays)
            return replace(row, map=map_file, overlay=overlay_file), regions

        seen = look_through(predictor, todo, category, batch=batch, keep_whole=overlays)
        for done, (row, regions) in enumerate(ordered(keep, seen, ahead=2), start=1):
            table.append(row, regions)
            if progress:
                progress(finished + done, len(images))
        return Summary(table.file, len(images), table.errors, table.verdicts, verdicts.can_judge(category))


def look_through(
    predictor: Predictor,
    images: Sequence[Input],
    category: str | None = None,
    *,
    batch: int = BATCH,
    keep_whole: bool = False,
) -> Iterator[tuple[Decoded, Found | None]]:
    """Each image with what was found in it, in order; None for a broken one.

    Args:
        category: whose good images an image should look like.
        keep_whole: keep the pixels at the image's own size.
    """

    def decode(image: Input) -> Decoded:
        try:
            pixels = read_image(image.path, **predictor.decoding)
            frames = predictor.view.frames(pixels)
        except DataError as error:
            return Decoded(image, error=str(error) if str(image.path) in str(error) else f"{image.path}: {error}")
        doubt = predictor.verdicts.doubt(pixels, category)
        return Decoded(image, frames, pixels if keep_whole else None, pixels.shape[:2], doubt)

    def weight(image: Input) -> int:
        return _decoded_bytes(image, predictor.decoding.get("max_pixels", MAX_PIXELS))

    decoded = ordered(decode, images, weight=weight, budget=IN_FLIGHT_BYTES)
    for group in _groups(decoded, batch):
        found = predictor.inspect([(one.frames, one.size) for one in group if one.frames is not None], batch)
        for one in group:
            yield one, None if one.frames is None else next(found)


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


def _decoded_bytes(image: Input, max_pixels: int) -> int:
    """Bytes of an image's pixels, told by its header."""
    try:
        height, width = image_size(image.path, max_pixels=max_pixels)
    except DataError:
        return 0  # it will be refused
    return 3 * height * width


def _judge(image: Decoded, found: Found | None, verdicts: Verdicts, category: str | None) -> tuple[Row, list[Region]]:
    """The row of an image, without its files, and its regions."""
    name = str(image.source.path)
    if found is None:
        return Row(name, error=image.error), []
    judged = verdicts.judge(found.score, found.anomaly_map, image.size, category, image.doubt)
    if not (math.isfinite(found.score) and np.isfinite(found.maps).all()):
        error = f"{name}: expected a finite score, found {found.score}; the part was not inspected"
        return Row(name, verdict=judged.verdict.word, reason=judged.verdict.reason, error=error), []
    return Row(name, found.score, judged.good_share, *judged.verdict), judged.regions


def _write(image: Decoded, found: Found, scale: Scale | None, out: Path, maps: bool, overlays: bool) -> tuple[str, str]:
    """Places of the map and the overlay of one image, written; empty for what was not asked for."""
    map_file, overlay_file = image.source.map_file, image.source.overlay_file
    if maps or overlays:
        anomaly_map = found.at(image.size)
        if maps:
            write_tiff(out / map_file, anomaly_map)
        if overlays and image.whole is not None:
            write_png(out / overlay_file, overlay(image.whole, anomaly_map, scale or Scale.of_map(anomaly_map)))
    return map_file if maps else "", overlay_file if overlays else ""
