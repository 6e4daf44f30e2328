"""The one evaluation: a run and a data root make `scores.json`.

Every test image of a category goes through the detector, maps and masks meet at one size, and are scored.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from threecad.checkpoint import load_detector
from threecad.data.hashes import Progress, content_hashes
from threecad.data.loading import load_frames, load_masks, load_offsets
from threecad.data.readers import Category, fingerprint, list_categories, read_category
from threecad.errors import DataError, FileError, MetricError
from threecad.files import write_json
from threecad.framing import Frames
from threecad.images import image_size, limit_of
from threecad.inference import predictor_of, recorded_framing
from threecad.methods import METHODS
from threecad.metrics.image import image_scores
from threecad.metrics.pixel import pixel_scores
from threecad.predictor import Found, Predictor
from threecad.records import Sample
from threecad.runs import RunFolder, RunRecord

IMAGE_METRICS = ("i_auroc", "i_ap", "i_f1_max", "fpr_at_95_tpr")
PIXEL_METRICS = ("p_auroc", "p_pro", "p_pro_per_image", "p_ap", "p_f1_max")
METRICS = ("i_auroc", "p_auroc", "p_pro", "p_pro_per_image", "p_ap", "i_ap", "p_f1_max", "i_f1_max", "fpr_at_95_tpr")

TITLES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "p_pro": "P-PRO pooled",
    "p_pro_per_image": "P-PRO per image",
    "p_ap": "P-AP",
    "i_ap": "I-AP",
    "p_f1_max": "P-F1",
    "i_f1_max": "I-F1",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}
"""Names of the metrics in tables for people."""


class Seen(NamedTuple):
    """A test image with what was found in it."""

    sample: Sample
    pixels: np.ndarray  # (H, W, 3) uint8, the last frame: the whole picture where it is looked at
    found: Found
    mask: np.ndarray  # (h, w) uint8 of 0 and 1 at the evaluation's size


def evaluate_run(
    run: Path | str,
    data: Path | str,
    categories: Sequence[str] = (),
    *,
    out: Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    counting: Callable[[str], Progress] | None = None,
    on_image: Callable[[Seen], None] | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The content of `scores.json`, written into the run folder.

    Args:
        data: data root, or category folder.
        categories: names to score on; without, those of the run that are found at `data`.
        out: another file to write instead of RUN/scores.json.
        device: as of `threecad.load`; likewise `precision`.
        counting: gives a callback for the progress of a work with this title.
        on_image: called with every test image, in order, for whoever draws pictures.
        notify: called with a line worth reading.

    Raises:
        DataError: a category that is not there, or that the run knows nothing of.
        RunError: the run cannot be loaded.
        FileError: the scores cannot be written; they come with the error's `scores`.
    """
    folder, root = RunFolder(Path(run)), Path(data)
    detector, record = load_detector(folder)
    framing = recorded_framing(folder, record)
    predictor = predictor_of(detector, record, framing, device=device, precision=precision, notify=notify)
    scores = []
    for name in choose_categories(record, root, categories):
        category = _without_exclusions(read_category(root, name), record)
        if counting:  # the pack that `evaluate` will find in the cache
            load_frames(category.test, framing, counting(f"decoding {category.name}"), predictor.decoding)
        shown = counting(f"scoring {category.name}") if counting else None
        scores.append(evaluate(predictor, record, category, progress=shown, on_image=on_image))
    content: dict[str, Any] = finite(with_mean(scores))
    try:
        write_json(out or folder.scores_file, content)
    except FileError as error:
        notify(f"{error}\nThe table is whole; give --out FILE to keep the scores elsewhere.")
    return content


def choose_categories(record: RunRecord, root: Path, names: Sequence[str] = ()) -> list[str]:
    """Names of the categories at `root` that a run is to be scored on.

    A category folder given as the root is taken whatever it is called, as is the only category of a root by a run that
    was learnt from a plain folder. Otherwise a method that learns one category at a time is only scored on that one.

    Raises:
        DataError: none of the run's categories is there, or another one was named.
    """
    found = list_categories(root)
    learnt = ", ".join(record.categories)
    if found == [root.resolve().name] and not (root / found[0]).is_dir():
        return list(names) or found
    if record.plain:
        if not names and len(found) > 1:
            raise DataError(
                f"the run was learnt from a plain folder '{learnt}', found several categories in {root}:\n"
                f"{', '.join(found)}; say which of them it is with --category"
            )
        return list(dict.fromkeys(names)) or found
    if not names:
        names = [name for name in record.categories if name in found]
        if not names:
            raise DataError(f"the run has learnt {learnt}, found only {', '.join(found)} in {root}")
    if METHODS[record.method].scope == "category":
        for name in names:
            if name in found and name not in record.categories:
                raise DataError(f"the run has learnt '{learnt}' and says nothing of '{name}'; choose a run of that")
    return list(dict.fromkeys(names))


def evaluate(
    predictor: Predictor,
    record: RunRecord,
    category: Category,
    *,
    progress: Progress | None = None,
    on_image: Callable[[Seen], None] | None = None,
) -> dict[str, Any]:
    """`scores.json` of one category: metrics as fractions, counts, and what they depend on.

    A defect that vanishes from its mask at the evaluation's size keeps its image label, leaves P-PRO, and is counted.
    Pixel metrics of a category without masks are None, as are those that need images of both kinds and have one.

    Raises:
        DataError: no test images, or one that cannot be read.
        MetricError: only good test images, or only defective ones without masks.
    """
    size = _size(record)
    test = category.test
    defective = sum(sample.is_defect for sample in test)
    if not defective or (defective == len(test) and not category.has_masks):
        raise MetricError(
            f"category '{category.name}': expected good and defective test images, "
            f"found {len(test) - defective} good and {defective} defective"
        )
    frames = load_frames(test, predictor.view, decoding=predictor.decoding)
    sizes = [image_size(sample.image, **limit_of(predictor.decoding)) for sample in test]
    offsets = load_offsets(test, predictor.view, predictor.decoding)
    masks = load_masks(test, size, decoding=predictor.decoding)
    labels = np.array([sample.is_defect for sample in test])
    vanished = labels & ~masks.reshape(len(masks), -1).any(axis=1) & category.has_masks

    scores = np.empty(len(test))
    with _MapsOnDisk(len(test), size) as maps:
        for index, found in enumerate(predictor.inspect(map(Frames, frames, sizes, offsets))):
            scores[index] = found.score
            maps[index] = found.at(size)
            if on_image:
                shown = predictor.view.shown(frames[index, -1], found.offset)
                on_image(Seen(test[index], shown, found, masks[index]))
            if progress:
                progress(index + 1, len(test))
        by_image: dict[str, Any] = dict.fromkeys(IMAGE_METRICS)
        if defective < len(test):
            by_image = asdict(image_scores(scores, labels))
        by_pixel: dict[str, Any] = dict.fromkeys(PIXEL_METRICS)
        if category.has_masks and masks.any():
            by_pixel = asdict(pixel_scores(maps, masks, left_out_of_pro=vanished.tolist()))
    metrics = by_image | by_pixel
    return {
        **{name: metrics[name] for name in METRICS},
        "n_good": int((~labels).sum()),
        "n_defect": int(labels.sum()),
        "n_vanished": int(vanished.sum()),
        "method": record.method,
        "category": category.name,
        "seed": record.seed,
        "preset": record.preset,
        "departures": record.departures,
        "steps": record.steps,
        "backbone": record.backbone,
        "weights_sha256": record.weights_sha256,
        "image_size": list(predictor.image_size),
        "evaluation_size": list(size),
        "precision": predictor.precision,
        "fit_precision": record.precision,
        "threads": record.threads,
        "hardware": record.hardware,
        "texture_source": record.texture_source,
        "selection": "last",
        "duration_s": record.duration_s,
        "data_fingerprint": _fingerprint(category),
        "exclusions": record.exclusions,
        "version": record.version,
        "libraries": record.libraries,
        "settings": record.settings,
    }


def with_mean(by_category: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`scores.json`: flat for one category, else their plain mean beside each of them."""
    if len(by_category) == 1:
        return by_category[0]
    mean: dict[str, Any] = {}
    for name in METRICS:
        values = [scores[name] for scores in by_category]
        mean[name] = None if any(value is None for value in values) else float(np.mean(values))
    return {"mean": mean, "categories": {scores["category"]: scores for scores in by_category}}


class _MapsOnDisk:
    """An array (N, H, W) float32 in a file without a name, gone when it is closed or the process ends."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.shape = (count, *size)

    def __enter__(self) -> np.memmap:
        bytes_needed = int(np.prod(self.shape)) * 4
        try:
            self.file = tempfile.TemporaryFile(prefix="threecad-maps-")
            _reserve(self.file.fileno(), bytes_needed)
        except OSError as error:
            raise DataError(
                f"no room for {bytes_needed / 1e9:.2f} GB of maps in {tempfile.gettempdir()}: {error.strerror};\n"
                "set TMPDIR to a folder with room"
            ) from None
        return np.memmap(self.file, np.float32, "r+", shape=self.shape)

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def _reserve(descriptor: int, count: int) -> None:
    """Claim disk space now, so that a full disk is an error here and not a crash at the first touch of a page."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, count)
    else:
        os.truncate(descriptor, count)


def finite(content: Any) -> Any:
    """The content with None in place of every number that JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _without_exclusions(category: Category, record: RunRecord) -> Category:
    """The category without the test images that the fit was told to leave out; the list travels with the run."""
    excluded = {line.removeprefix(f"{category.name}/") for line in record.exclusions}
    kept = [s for s in category.test if s.image.relative_to(category.folder).as_posix() not in excluded]
    return replace(category, test=tuple(kept))


def _size(record: RunRecord) -> tuple[int, int]:
    height, width = record.settings["evaluation"]["size"]
    return int(height), int(width)


def _fingerprint(category: Category) -> str:
    """Of everything the scores stand on: the training images and the test images with their masks."""
    files = [path for sample in category.samples for path in (sample.image, *sample.masks)]
    hashes = dict(zip(files, content_hashes(files), strict=True))
    return fingerprint(category.samples, hashes.__getitem__)
