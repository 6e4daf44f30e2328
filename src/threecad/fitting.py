"""From a folder of good parts to a run folder: everything around the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from threecad.checkpoint import backbone_file, load_detector, save_detector
from threecad.data.loading import Progress
from threecad.detector import Detector
from threecad.devices import best_device, hardware, resolve_precision
from threecad.errors import RunError
from threecad.fit_data import FitData, listed_exclusions, read_fit_data
from threecad.fit_plan import FitPlan, plan_fit
from threecad.inference import predict
from threecad.methods import METHODS
from threecad.nets.weights import file_sha256
from threecad.presets import departures, resolve_settings
from threecad.resuming import compare_conditions, refuse_other_settings
from threecad.runs import RunFolder, RunRecord
from threecad.settings import Settings
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
    run, resolved = RunFolder(Path(out)), resolve_settings(method, settings or {})
    fabric = _fabric(resolved)
    before = run.read_record() if resume and run.is_started else None
    if before:
        refuse_other_settings(before, method, resolved)
    elif fabric.global_rank == 0:
        run.refuse_unless_free()  # with `resume`, too: a folder without a record is nothing to go on with
    found = read_fit_data(method, Path(data), categories, resolved)
    textures = texture_source(resolved.data.textures)
    fabric.launch()
    device = best_device() if fabric.world_size == 1 else fabric.device
    with own_randomness():
        seed_everything((resolved.training.seed, _BUILD), device)
        detector = METHODS[method](resolved.method)
        plan = plan_fit(detector, textures, resolved.training, len(found.learnt))
        record = _describe(method, resolved, found, plan, detector, fabric)
        if before:
            compare_conditions(before, record, inexact, notify)
            if before.finished:
                notify(f"{run.path} is finished already")
                return load_detector(run)[0]
        size = resolved.method.image_size
        notify(
            f"{method} learns from {len(found.learnt)} good images, {len(found.held_out)} are kept aside; "
            f"{plan.optimizer_steps} steps of {plan.batch} in {record.precision}"
        )
        images = found.pixels(found.learnt, size, progress)  # first: a broken image leaves no folder behind
        if fabric.is_global_zero:
            run.create(record, resolved)
        fabric.barrier()
        detector = detector.to(fabric.device).to(memory_format=torch.channels_last)
        seconds = train(detector, images, textures, resolved.training, plan, run, fabric, callback)
    if fabric.is_global_zero:
        record.duration_s = round(seconds, 1)
        _look_at_good_parts(detector, record, found, size, progress)
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
        departures=departures(method, settings),
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
    detector: Detector, record: RunRecord, data: FitData, size: tuple[int, int], progress: Progress | None
) -> None:
    """Keep in the record what the detector says of the good parts kept aside, category by category.

    Raises:
        RunError: a score is not finite.
    """
    scores: dict[str, list[float]] = {name: [] for name in record.categories}
    peaks: dict[str, list[float]] = {name: [] for name in record.categories}
    pixels = data.pixels(data.held_out, size, progress)
    for sample, found in zip(data.held_out, predict(detector, pixels, record.precision), strict=True):
        peak = float(found.anomaly_map.max())
        if not (math.isfinite(found.score) and math.isfinite(peak)):
            raise RunError(f"expected a finite score of the good part {sample.image}, found {found.score}; fit anew")
        scores[sample.category].append(found.score)
        peaks[sample.category].append(peak)
    record.good_scores, record.good_peaks = scores, peaks
