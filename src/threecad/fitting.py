"""From a folder of good parts to a run folder: everything around the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from threecad.checkpoint import backbone_file, load_detector, save_detector
from threecad.data.loading import Progress
from threecad.detector import Detector
from threecad.devices import best_device, hardware, resolve_precision
from threecad.errors import RunError
from threecad.fit_data import FitData, framing_of, listed_exclusions, read_fit_data
from threecad.fit_plan import FitPlan, plan_fit
from threecad.framing import Framing
from threecad.images import image_size, limit_of, write_png
from threecad.inference import predictor_of
from threecad.methods import METHODS
from threecad.nets.weights import file_sha256
from threecad.predictor import Found, Predictor
from threecad.presets import departures, resolve_settings, settle_sizes, size_on_grid
from threecad.records import Sample
from threecad.resuming import compare_conditions, refuse_other_settings
from threecad.runs import RunFolder, RunRecord
from threecad.settings import AUTO, Settings
from threecad.synthesis.textures import texture_source
from threecad.tensors import own_randomness, seed_everything
from threecad.training import Callback, train

_BUILD = 2**31
"""Stands for a phase in the seed of the detector's construction."""


def fit(
    method: str,
    data: Path | str,
    out: Path | str,
    *,
    categories: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    resume: bool = False,
    inexact: bool = False,
    callback: Callback | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Detector:
    """Learn what good parts look like and leave a run folder; the fitted detector comes out.

    Args:
        method: a key of `METHODS`.
        data: data root, category folder, or plain folder of good images.
        out: the run folder; new or empty, unless `resume`.
        categories: names; one for a method of scope "category", any number (none = all) for one of scope "dataset".
        settings: tables as in a settings file: `{"training": {"preset": "quick"}}`.
        resume: go on with an interrupted fit; exactly, or not at all.
        inexact: resume even where it cannot be exact, and keep in the record what has changed.
        callback: called after every step.
        progress: called while images are decoded.
        notify: called with a line worth reading.

    Raises:
        ThreeCADError: whatever the user can mend.
        Interrupted: Ctrl-C; `resume` goes on.
    """
    run, requested = RunFolder(Path(out)), resolve_settings(method, settings or {})
    fabric = _fabric(requested)
    before = run.read_record() if resume and run.is_started else None
    if not before and fabric.global_rank == 0:
        run.refuse_unless_free()  # with `resume`, too: a folder without a record is nothing to go on with
    found = read_fit_data(method, Path(data), categories, requested)
    shape = found.shape(notify) if requested.method.image_size == AUTO else (1.0, 1.0)
    size = size_on_grid(shape, requested.method.pixels, requested.method.grid)
    resolved = settle_sizes(requested, size)
    if before:
        refuse_other_settings(before, method, resolved)
    framing = framing_of(resolved, found)
    textures = texture_source(resolved.data.textures)
    fabric.launch()
    device = best_device() if fabric.world_size == 1 else fabric.device
    with own_randomness():
        seed_everything((resolved.training.seed, _BUILD), device)
        detector = METHODS[method](resolved.method)
        plan = plan_fit(detector, textures, resolved.training, len(found.learnt) * len(framing.boxes(found.sizes[0])))
        record = _describe(method, resolved, found, plan, detector, fabric)
        record.departures = departures(method, requested)
        if framing.region is not None:
            record.region_fill, record.region_is_exact = framing.region.fill, framing.region.is_exact
        if before:
            compare_conditions(before, record, inexact, notify)
            if before.finished:
                notify(f"{run.path} is finished already")
                return load_detector(run)[0]
        height, width = resolved.method.image_size
        notify(
            f"{method} at {height}×{width} px learns from {len(found.learnt)} good images, "
            f"{len(found.held_out)} are kept aside; {plan.optimizer_steps} steps of {plan.batch} in {record.precision}"
        )
        images = found.pixels(found.learnt, framing, progress)  # first: a broken image leaves no folder behind
        if fabric.is_global_zero:
            run.create(record, resolved)
            if framing.region is not None:
                write_png(run.region_file, 255 * framing.region.mask.astype(np.uint8))
        fabric.barrier()
        detector = detector.to(fabric.device).to(memory_format=torch.channels_last)
        seconds = train(detector, images, textures, resolved.training, plan, run, fabric, callback)
    if fabric.is_global_zero:
        record.duration_s = round(seconds, 1)
        _look_at_good_parts(detector, record, found, framing, progress)
        save_detector(run, detector, record)
    fabric.barrier()
    return detector.eval()


def _fabric(settings: Settings) -> Fabric:
    """Fabric for the number of devices; its launcher runs the same command again for each further one."""
    device, devices = best_device(), settings.training.devices
    precision = resolve_precision(settings.training.precision, device)
    return Fabric(
        accelerator=device.type,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )


def _describe(
    method: str, settings: Settings, data: FitData, plan: FitPlan, detector: Detector, fabric: Fabric
) -> RunRecord:
    """What `run.json` says before the first step."""
    file = backbone_file(detector)
    return RunRecord(
        method=method,
        categories=[category.name for category in data.categories],
        plain=data.categories[0].is_plain,
        settings=settings.as_tables(),
        seed=settings.training.seed,
        preset=settings.training.preset,
        precision=resolve_precision(settings.training.precision, fabric.device),
        threads=torch.get_num_threads(),
        devices=fabric.world_size,
        hardware=hardware(),
        steps=plan.optimizer_steps,
        backbone=getattr(settings.method, "backbone", None),
        weights_sha256=file_sha256(file) if file else None,
        texture_source=plan.textures,
        data_fingerprint=data.fingerprint,
        exclusions=listed_exclusions(settings.data.exclude),
        holdout=[data.categories[0].path_in_root(sample.image) for sample in data.held_out],
    )


def _look_at_good_parts(
    detector: Detector, record: RunRecord, data: FitData, framing: Framing, progress: Progress | None
) -> None:
    """Keep in the record what the detector says of the good parts kept aside, category by category.

    Where a part is several frames, the units of their maps come first: from the parts kept aside, or from those learnt
    where there are none.

    Raises:
        RunError: a score is not finite.
    """
    device = str(next(detector.parameters()).device)
    bare = predictor_of(detector, record, framing, device=device, precision=record.precision)
    if not framing.is_plain:
        record.map_units = _map_units(bare, data, data.held_out or data.learnt, framing, progress)
    predictor = predictor_of(detector, record, framing, device=device, precision=record.precision)
    scores: dict[str, list[float]] = {name: [] for name in record.categories}
    peaks: dict[str, list[float]] = {name: [] for name in record.categories}
    for sample, found in zip(data.held_out, _seen(predictor, data, data.held_out, framing, progress), strict=True):
        peak = float(found.anomaly_map.max())
        if not (math.isfinite(found.score) and math.isfinite(peak)):
            raise RunError(f"expected a finite score of the good part {sample.image}, found {found.score}; fit anew")
        scores[sample.category].append(found.score)
        peaks[sample.category].append(peak)
    record.good_scores, record.good_peaks = scores, peaks


def _map_units(
    predictor: Predictor, data: FitData, samples: Sequence[Sample], framing: Framing, progress: Progress | None
) -> dict[str, tuple[float, float]]:
    """Centre and spread, by kind of frame, of the peaks of good parts' maps."""
    peaks: dict[str, list[float]] = {}
    for found in _seen(predictor, data, samples, framing, progress):
        for kind, anomaly_map in zip(framing.kinds(found.size), found.maps, strict=True):
            peaks.setdefault(kind, []).append(float(anomaly_map.max()))
    return {kind: (float(np.median(values)), float(np.std(values))) for kind, values in peaks.items()}


def _seen(
    predictor: Predictor, data: FitData, samples: Sequence[Sample], framing: Framing, progress: Progress | None
) -> Iterator[Found]:
    """What is found in each of some good images, in order."""
    rows = data.pixels(samples, framing, progress)
    sizes = [image_size(sample.image, **limit_of(data.decoding)) for sample in samples]
    count = len(rows) // max(len(samples), 1)
    pictures = ((rows[np.arange(k * count, (k + 1) * count)], size) for k, size in enumerate(sizes))
    return predictor.inspect(pictures)
