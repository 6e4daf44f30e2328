"""From a folder of good parts to a run folder: everything around the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from threecad.checkpoint import backbone_file, load_detector, save_detector
from threecad.data.hashes import Progress
from threecad.data.loading import Rows
from threecad.detector import Detector
from threecad.devices import best_device, hardware, resolve_precision
from threecad.files import as_text, file_sha256
from threecad.fit_data import FitData, framing_of, golden_part_of, listed_exclusions, read_fit_data
from threecad.fit_plan import FitPlan, plan_fit
from threecad.framing import Framing
from threecad.images import write_png
from threecad.inference import predictor_of
from threecad.methods import METHODS
from threecad.presets import departures, detector_of, resolve_settings, settle_sizes, size_on_grid
from threecad.resuming import compare_conditions, refuse_other_settings
from threecad.runs import RunFolder, RunRecord
from threecad.scoring import FoldsFolder, Parts, look_at, map_units, score_parts, together
from threecad.settings import AUTO, Settings
from threecad.synthesis import TextureSource
from threecad.synthesis.textures import texture_source
from threecad.tensors import own_randomness, seed_everything
from threecad.threads import gave_way
from threecad.training import Callback, StepReport, train
from threecad.verdicts import GoodScores

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
    fabric = _fabric(method, requested)
    before = run.read_record() if resume and run.is_started else None
    if before and gave_way():
        torch.set_num_threads(before.threads)  # with which it goes on exactly, however busy the machine is now
    if not before and fabric.global_rank == 0:
        run.refuse_unless_free()  # with `resume`, too: a folder without a record is nothing to go on with
    found = read_fit_data(method, Path(data), categories, requested, progress)
    shape = found.shape(notify) if requested.method.image_size == AUTO else (1.0, 1.0)
    size = size_on_grid(shape, requested.method.pixels, requested.method.grid)
    resolved = settle_sizes(requested, size)
    golden, why = golden_part_of(resolved, found, progress)
    resolved = resolved.model_copy(
        update={"data": resolved.data.model_copy(update={"registration": golden is not None})}
    )
    framing = framing_of(resolved, found, golden)
    frames = len(found.learnt) * len(framing.boxes(found.sizes[0]))
    resolved = resolved.model_copy(update={"method": resolved.method.for_images(frames)})
    if before:
        refuse_other_settings(before, method, resolved)
    textures = texture_source(resolved.data.textures)
    job = _Job(method, resolved, textures, fabric, callback)
    with own_randomness():
        detector, plan = job.build(frames)
        record = _describe(method, resolved, found, framing, plan, detector, fabric)
        record.departures = departures(method, requested)
        if before:
            compare_conditions(before, record, inexact, notify)
            if before.finished:
                notify(f"{run.path} is finished already")
                return load_detector(run)[0]
        notify(_what_comes(method, resolved, found, plan, record))
        images = found.pixels(found.learnt, framing, progress)  # first: a broken image leaves no folder behind
        fabric.launch()  # only now: further processes find all images decoded
        if fabric.is_global_zero:
            run.create(record, resolved)
            _write_framing(run, framing)
        fabric.barrier()
        folds = _score_by_folds(job, found, framing, record, run, progress, notify) if found.scoring == "folds" else {}
        seconds = job.learn(detector, plan, images, run)
    if fabric.is_global_zero:
        record.duration_s = round(seconds, 1)
        record.choices = [*why, *detector.choices()]
        good = _good_scores(job, detector, record, found, framing, plan.batch, folds, progress)
        save_detector(run, detector, record, good)
        FoldsFolder(run.path).remove()
    fabric.barrier()
    return detector.eval()


@dataclass(frozen=True)
class _Job:
    """What all fits of a command have in common: the one that stays, and those of its folds."""

    method: str
    settings: Settings
    textures: TextureSource
    fabric: Fabric
    callback: Callback | None

    @property
    def device(self) -> str:
        """Where this process learns and looks."""
        return str(self.fabric.device)

    def build(self, images: int) -> tuple[Detector, FitPlan]:
        """An untrained detector, and what its fit on so many images is going to do."""
        device = best_device() if self.fabric.world_size == 1 else self.fabric.device
        seed_everything((self.settings.training.seed, _BUILD), device)
        detector = detector_of(self.method, self.settings)
        return detector, plan_fit(detector, self.textures, self.settings.training, images)

    def learn(self, detector: Detector, plan: FitPlan, images: Rows, run: RunFolder, name: str = "") -> float:
        """Seconds in which the detector has learnt; with `name` before that of each phase."""
        detector.to(self.fabric.device).to(memory_format=torch.channels_last)

        def report(step: StepReport) -> None:
            if self.callback:
                self.callback(replace(step, phase=f"{name} {step.phase}") if name else step)

        return train(detector, images, self.textures, self.settings.training, plan, run, self.fabric, report)


def _score_by_folds(
    job: _Job,
    data: FitData,
    framing: Framing,
    record: RunRecord,
    run: RunFolder,
    progress: Progress | None,
    notify: Callable[[str], None],
) -> Parts:
    """The good parts, each by a fit on the other folds; what an earlier attempt has finished is not done again."""
    folder, count = FoldsFolder(run.path), job.settings.training.folds or 0
    scored = [folder.read(fold) for fold in range(count)]
    job.fabric.barrier()
    for fold, known in enumerate(scored):
        if known is not None:
            continue
        others, inside = data.without_fold(fold)
        detector, plan = job.build(len(others))
        images = data.pixels(others, framing, progress)
        seconds = job.learn(detector, plan, images, RunFolder(folder.make(fold)), f"fold {fold + 1}/{count}")
        if job.fabric.is_global_zero:
            predictor = predictor_of(detector, record, framing, device=job.device, precision=record.precision)
            scored[fold] = score_parts(predictor, data, inside, framing, progress)
            folder.write(fold, scored[fold] or {})
            left = sum(one is None for one in scored) + 1
            notify(
                f"fold {fold + 1} of {count} took {timedelta(seconds=round(seconds))}; {left} fits are left, about "
                f"{timedelta(seconds=round(left * seconds))}"
            )
        job.fabric.barrier()
    return together(parts for parts in scored if parts is not None)


def _good_scores(
    job: _Job,
    detector: Detector,
    record: RunRecord,
    data: FitData,
    framing: Framing,
    batch: int,
    folds: Parts,
    progress: Progress | None,
) -> GoodScores:
    """What is known of the good parts; where a part is several frames, the units of their maps come first.

    Those are from the parts kept aside, or from those learnt where there are none.
    """
    if not framing.is_plain:
        bare = predictor_of(detector, record, framing, device=job.device, precision=record.precision)
        record.map_units = map_units(bare, data, data.held_out or data.learnt, framing, progress)
    predictor = predictor_of(detector, record, framing, device=job.device, precision=record.precision)
    if data.scoring == "left out":
        predictor.network.forward = detector.left_out  # type: ignore[attr-defined]
        parts = score_parts(predictor, data, data.every, framing, progress, batch)
    else:
        parts = folds or score_parts(predictor, data, data.held_out, framing, progress)
    learnt = dict.fromkeys(data.known[sample.image].name for sample in data.learnt)
    looks = look_at(data.every, data.decoding, progress)
    return GoodScores(parts=parts, looks=looks, learnt=tuple(learnt), part=job.settings.data.part)


def _what_comes(method: str, settings: Settings, data: FitData, plan: FitPlan, record: RunRecord) -> str:
    """What the fit is going to do, and how its good parts will be scored."""
    height, width = settings.method.image_size
    said = f"{method} at {height}×{width} px learns from {len(data.learnt)} good images"
    if data.scoring == "folds":
        folds = settings.training.folds
        said += f", {folds + 1 if folds else 1} times: in {folds} folds that score each other, then all"
    elif data.scoring == "left out":
        said += ", each of which is scored as if it had been left out"
    else:
        said += f", {len(data.held_out)} are kept aside"
    if settings.data.each:
        said += ", and each place has a detector of its own"
    return f"{said}; {plan.optimizer_steps} steps of {plan.batch} in {record.precision}"


def _fabric(method: str, settings: Settings) -> Fabric:
    """Fabric for the number of devices; its launcher runs the same command again for each further one."""
    device, devices = best_device(), settings.training.devices
    precision = _precision(method, settings, device)
    return Fabric(
        accelerator=device.type,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )


def _precision(method: str, settings: Settings, device: torch.device) -> str:
    """Of the fit, and with it of its good parts' scores and of predictions.

    Unless told otherwise, a method that scores each part as if it had left it out takes float32: such a score needs
    what the fit saw to the last bit, and cannot be had again in the float32 of a bundle or of another machine.
    """
    asked = settings.training.precision
    return resolve_precision("float32" if asked == "auto" and METHODS[method].leaves_out else asked, device)


def _write_framing(run: RunFolder, framing: Framing) -> None:
    """The pictures that say what the network sees of another one."""
    if framing.region is not None:
        write_png(run.region_file, 255 * framing.region.mask.astype(np.uint8))
    if framing.golden is not None:
        write_png(run.golden_file, framing.golden.picture)


def _describe(
    method: str,
    settings: Settings,
    data: FitData,
    framing: Framing,
    plan: FitPlan,
    detector: Detector,
    fabric: Fabric,
) -> RunRecord:
    """What `run.json` says before the first step."""
    file, region, golden = backbone_file(detector), framing.region, framing.golden
    return RunRecord(
        method=method,
        categories=[category.name for category in data.categories],
        plain=data.categories[0].is_plain,
        settings=settings.as_tables(),
        seed=settings.training.seed,
        preset=settings.training.preset,
        precision=_precision(method, settings, fabric.device),
        scoring=data.scoring,
        threads=torch.get_num_threads(),
        devices=fabric.world_size,
        hardware=hardware(),
        steps=plan.optimizer_steps,
        backbone=getattr(settings.method, "backbone", None),
        weights_sha256=file_sha256(file) if file else None,
        texture_source=plan.textures,
        data_fingerprint=data.fingerprint,
        exclusions=listed_exclusions(settings.data.exclude),
        holdout=[as_text(data.categories[0].path_in_root(sample.image)) for sample in data.held_out],
        region_fill=None if region is None else region.fill,
        region_is_exact=region is None or region.is_exact,
        reach=None if golden is None else golden.reach,
    )
