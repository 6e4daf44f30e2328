"""Files and folders in; a verdict, a map, an overlay and a row of `predictions.csv` for each image out.

    gather → decode (threads, in order) → network (batches) → map and overlay (threads, in order) → row

A row is appended as soon as its image is done, so that an interrupted run loses nothing and `resume` goes on. Each
image is decoded once. Memory grows with the size of the images, not with their number.

On an engine of several workers the same stream runs over shards of the images, wherever there is a process: whole
batches, so that the network sees what it would see here. Workers write maps and overlays, rows are appended here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from platform import node
from typing import Any

import numpy as np

from threecad.data.hashes import Progress
from threecad.engines import Engine, map_tasks
from threecad.errors import DataError, RunError
from threecad.framing import Frames
from threecad.images import MAX_PIXELS, image_size, read_image, write_png, write_tiff
from threecad.inputs import Input, gather
from threecad.opening import open_predictor
from threecad.overlay import Scale, overlay
from threecad.part_table import tabulate_parts
from threecad.prediction_table import About, PredictionTable, Row
from threecad.predictor import BATCH, Found, Predictor
from threecad.threads import ordered
from threecad.verdicts import Region, Verdicts, other_conditions

IN_FLIGHT_BYTES = 2**28
"""Decoded pixels that wait for a batch, at most: large pictures go in smaller batches."""

SHARD_BATCHES = 8
"""Batches of a shard: few enough that a worker's death costs seconds, many enough that its start does not count."""

Judged = tuple[Row, list[Region]]
"""What the table keeps of an image."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image on its way to the network; of a broken one only why it is."""

    source: Input
    frames: Frames | None = None  # what the network sees
    whole: np.ndarray | None = None  # at its own size, where an overlay is to be drawn
    doubt: str | None = None  # why it cannot be a picture of a part
    error: str = ""

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        pixels = (self.frames and self.frames.pixels, self.whole)
        return sum(held.nbytes for held in pixels if held is not None)


@dataclass(frozen=True, slots=True)
class Request:
    """What to look with and what to leave of each image, in whichever process; the arguments of `predict_files`."""

    run: Path
    out: Path
    maps: bool = True
    overlays: bool = True
    batch: int = BATCH
    device: str | None = None
    precision: str | None = None
    category: str | None = None
    max_pixels: int | None = None
    about: tuple[tuple[str, Any], ...] = ()  # content of predictions.json, once it is known

    def open(self, notify: Callable[[str], None] = lambda line: None) -> Predictor:
        """The predictor, which reads images as large as asked for."""
        predictor = open_predictor(self.run, device=self.device, precision=self.precision, notify=notify)
        if self.max_pixels is None:
            return predictor
        return replace(predictor, decoding={**predictor.decoding, "max_pixels": self.max_pixels})

    def settled(self, predictor: Predictor) -> Request:
        """With all that rows depend on, so that they are the same in every process."""
        category = predictor.verdicts.good.category(self.category)
        about = tuple(_about(predictor, category).items())
        return replace(self, precision=predictor.precision, category=category, about=about)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the images."""

    table: Path  # predictions.csv
    count: int  # images, broken ones and those of an earlier attempt included
    errors: list[str]  # a line for each image that could not be inspected
    verdicts: Counter[str]  # how many images got OK, REVIEW, NG
    parts: Counter[str]  # likewise parts, where `data.part` says which images show one
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
    engine: Engine | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Summary:
    """What a run or a bundle says of images, left in the folder `out`:

        predictions.csv      a row an image, in the order of the inputs
        regions.jsonl        a line an image: boxes, areas and peaks of what good parts do not have
        predictions.json     which detector, good parts and budgets
        parts.csv            a row a part, where the fit's `data.part` says which images show one
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
        engine: where it is done; in this process without. Images, run and `out` have one path on all machines.
        progress: called with how many images are done, and how many there are.
        notify: called with a line worth reading.

    Raises:
        DataError: an input that is not there, a folder without images, or two images of the same place.
        RunError, BundleError: a run or a bundle that cannot be loaded, here or on another machine.
        RunError: results of another run to go on with; a cluster that does not answer.
        SettingsError: a category that was not learnt, or several and none is named.
        FileError: a folder that cannot be written.
    """
    images = gather(inputs, out)
    asked = Request(Path(run), out, maps, overlays, batch, device, precision, category, max_pixels)
    predictor = asked.open(notify)
    request, verdicts = asked.settled(predictor), predictor.verdicts
    with PredictionTable(out, dict(request.about), resume) as table:
        todo = [image for image in images if str(image.path) not in table.done]
        finished = len(images) - len(todo)
        judged = judge_images(predictor, request, todo) if engine is None else _judge_on(engine, request, todo)
        for done, (row, regions) in enumerate(judged, start=1):
            table.append(row, regions)
            if progress:
                progress(finished + done, len(images))
        table.arrange([str(image.path) for image in images])
    parts = tabulate_parts(table.file, verdicts.good, request.category)
    can_judge = verdicts.can_judge(request.category)
    return Summary(table.file, len(images), table.errors, table.verdicts, parts, can_judge)


def judge_images(predictor: Predictor, request: Request, images: Sequence[Input]) -> Iterator[Judged]:
    """The row and the regions of each image, in order, once its map and its overlay are written."""
    verdicts, category = predictor.verdicts, request.category
    scale = Scale.of_good(verdicts, category)

    def keep(one: tuple[Decoded, Found | None]) -> Judged:
        image, found = one
        row, regions = _judge(image, found, verdicts, category)
        if found is None or row.error:
            return row, regions
        map_file, overlay_file = _write(image, found, scale, request)
        return replace(row, map=map_file, overlay=overlay_file), regions

    seen = look_through(predictor, images, category, batch=request.batch, keep_whole=request.overlays)
    return ordered(keep, seen, ahead=2)


def judge_shard(request: Request, images: Sequence[Input]) -> list[Judged]:
    """The same of some images, in a process of an engine, which opens the run once for all its shards.

    Raises:
        RunError: this machine does not see `request.out`, or would say something else of the images.
        RunError, BundleError: the run or the bundle cannot be loaded here.
    """
    return list(judge_images(_opened(request), request, images))


@lru_cache(maxsize=1)
def _opened(request: Request) -> Predictor:
    if not (request.out / PredictionTable.ABOUT).is_file():
        raise RunError(
            f"expected the results' folder {request.out} on every machine, found none on {node()}; "
            "images, run and --out need the same path on all of them"
        )
    predictor = request.open()
    differ = other_conditions(dict(request.about), _about(predictor, request.category))
    if differ:
        raise RunError(f"expected {request.run} to be the same on every machine, found on {node()}: {differ}")
    return predictor


def _about(predictor: Predictor, category: str | None) -> About:
    """Which detector, good parts and budgets rows are of."""
    verdicts = predictor.verdicts
    good = {"good_parts": len(verdicts.good.of(category)), "good_parts_sha256": verdicts.good.sha256}
    return {**predictor.conditions, **good, **verdicts.settings.model_dump()}


def _judge_on(engine: Engine, request: Request, images: Sequence[Input]) -> Iterator[Judged]:
    """The row and the regions of each image, each exactly once, shard by shard as they end.

    Where a shard's process dies again and again its images are looked at one by one: one at which a process still dies
    is a broken one.

    Raises:
        RunError: a machine on which no image can be looked at, and why.
    """
    for size in (SHARD_BATCHES * request.batch, 1):
        shards = [images[start : start + size] for start in range(0, len(images), size)]
        images = []
        for ended in map_tasks(partial(judge_shard, request), shards, engine, fresh=False):
            shard = shards[ended.index]
            if ended.failure is None:
                yield from ended.result
            elif not ended.died:
                raise RunError(ended.failure)
            elif len(shard) > 1:
                images += shard
            else:
                name = str(shard[0].path)
                yield Row(name, error=f"{name}: {ended.failure}; the part was not inspected"), []


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
        return Decoded(image, frames, pixels if keep_whole else None, doubt)

    def weight(image: Input) -> int:
        return _decoded_bytes(image, predictor.decoding.get("max_pixels", MAX_PIXELS))

    decoded = ordered(decode, images, weight=weight, budget=IN_FLIGHT_BYTES)
    for group in _groups(decoded, batch):
        found = predictor.inspect([one.frames for one in group if one.frames is not None], batch)
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
    judged = verdicts.judge(found.score, found.anomaly_map, found.size, category, image.doubt or found.doubt)
    if not (math.isfinite(found.score) and np.isfinite(found.maps).all()):
        error = f"{name}: expected a finite score, found {found.score}; the part was not inspected"
        return Row(name, verdict=judged.verdict.word, reason=judged.verdict.reason, error=error), []
    return Row(name, found.score, judged.good_share, *judged.verdict), judged.regions


def _write(image: Decoded, found: Found, scale: Scale | None, request: Request) -> tuple[str, str]:
    """Places of the map and the overlay of one image, written; empty for what was not asked for."""
    map_file, overlay_file = image.source.map_file, image.source.overlay_file
    if request.maps or request.overlays:
        anomaly_map = found.at(found.size)
        if request.maps:
            write_tiff(request.out / map_file, anomaly_map)
        if request.overlays and image.whole is not None:
            picture = overlay(image.whole, anomaly_map, scale or Scale.of_map(anomaly_map))
            write_png(request.out / overlay_file, picture)
    return map_file if request.maps else "", overlay_file if request.overlays else ""
