"""The one evaluation: every test image of a category through the detector, maps and masks met at one size, scored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from threecad.checkpoint import RunRecord
from threecad.data.loading import content_hashes, load_images, load_masks
from threecad.data.readers import Category, fingerprint
from threecad.detector import Detector
from threecad.errors import DataError, MetricError
from threecad.inference import Found, at_size, predict
from threecad.metrics.image import image_scores
from threecad.metrics.pixel import pixel_scores
from threecad.records import Sample

PIXEL_METRICS = ("p_auroc", "p_pro", "p_pro_per_image", "p_ap", "p_f1_max")
METRICS = ("i_auroc", "p_auroc", "p_pro", "p_pro_per_image", "p_ap", "i_ap", "p_f1_max", "i_f1_max", "fpr_at_95_tpr")


class Seen(NamedTuple):
    """A test image with what was found in it."""

    sample: Sample
    pixels: np.ndarray  # (H, W, 3) uint8 at the detector's image size
    found: Found
    mask: np.ndarray  # (h, w) uint8 of 0 and 1 at the evaluation's size


def evaluate(
    detector: Detector,
    record: RunRecord,
    category: Category,
    *,
    progress: Callable[[int, int], None] | None = None,
    look: Callable[[Seen], None] | None = None,
) -> dict[str, Any]:
    """`scores.json` of one category: metrics as fractions, counts, and what they depend on.

    A defect that vanishes from its mask at the evaluation's size keeps its image label, leaves P-PRO, and is counted.
    Pixel metrics of a category without masks are None.

    Args:
        progress: called with how many images are done, and how many there are.
        look: called with every image, in order, for whoever draws pictures.

    Raises:
        DataError: no test images, or one that cannot be read.
        MetricError: only good, or only defective test images.
    """
    size = _size(record)
    test = category.test
    if not any(sample.is_defect for sample in test) or all(sample.is_defect for sample in test):
        counts = f"{sum(not s.is_defect for s in test)} good and {sum(s.is_defect for s in test)} defective"
        raise MetricError(f"category '{category.name}': expected good and defective test images, found {counts}")
    images = load_images(test, detector.config.image_size)
    masks = load_masks(test, size)
    labels = np.array([sample.is_defect for sample in test])
    vanished = labels & ~masks.reshape(len(masks), -1).any(axis=1) & category.has_masks

    scores = np.empty(len(test))
    with _MapsOnDisk(len(test), size) as maps:
        for index, found in enumerate(predict(detector, images, record.precision)):
            scores[index] = found.score
            maps[index] = at_size(found.anomaly_map, size)
            if look:
                look(Seen(test[index], images[index], found, masks[index]))
            if progress:
                progress(index + 1, len(test))
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
        "steps": record.steps,
        "backbone": record.backbone,
        "weights_sha256": record.weights_sha256,
        "image_size": list(detector.config.image_size),
        "evaluation_size": list(size),
        "precision": record.precision,
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


def _size(record: RunRecord) -> tuple[int, int]:
    height, width = record.settings["evaluation"]["size"]
    return int(height), int(width)


def _fingerprint(category: Category) -> str:
    """Of everything the scores stand on: the training images and the test images with their masks."""
    files = [path for sample in category.samples for path in (sample.image, *sample.masks)]
    hashes = dict(zip(files, content_hashes(files), strict=True))
    return fingerprint(category.samples, hashes.__getitem__)
