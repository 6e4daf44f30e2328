"""From a folder of good parts to a run folder: everything around the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from threecad.checkpoint import RunFolder, RunRecord, backbone_file
from threecad.data.loading import Progress, Rows, content_hashes, load_images
from threecad.data.readers import Category, exclude, fingerprint, read_categories
from threecad.detector import Detector
from threecad.errors import DataError, RunError
from threecad.fit_plan import FitPlan, plan_fit
from threecad.inference import best_device, predict, resolve_precision
from threecad.methods import METHODS
from threecad.nets.weights import file_sha256
from threecad.records import Sample
from threecad.settings import Settings, merge, validate
from threecad.synthesis.textures import texture_source
from threecad.training import Watch, seed_everything, train

_BUILD = 2**31
"""Stands for a phase in the seed of the detector's construction."""


@dataclass(frozen=True)
class FitData:
    """The good images of a fit."""

    categories: list[Category]
    learnt: list[Sample]
    held_out: list[Sample]
    fingerprint: str


def resolve_settings(method: str, *layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Frozen settings of a method: its defaults, its preset's, then the layers, the last one winning.

    Raises:
        SettingsError: an unknown method, preset, table, key, or a value that does not fit.
    """
    detector = METHODS[method]
    asked = merge(*layers)
    preset = asked.get("training", {}).get("preset", "paper")
    presets: dict[str, dict[str, Mapping[str, Any]]] = {
        "paper": {"data": {"holdout": 0.0}},
        "quick": {"method": detector.quick.method, "training": detector.quick.training},
    }
    return validate(merge(presets.get(str(preset), {}), asked), detector.Config)


def build(method: str, **settings: Any) -> Detector:
    """An untrained detector: `build("cfrg", weights="random")`; keywords are the method's settings.

    Raises:
        SettingsError: an unknown method or setting.
        WeightsError: pretrained weights that are not on this machine.
    """
    detector = METHODS[method]
    return detector(validate({"method": settings}, detector.Config).method)


def fit(
    method: str,
    data: Path | str,
    out: Path | str,
    *,
    categories: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    resume: bool = False,
    inexact: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Detector:
    """Learn what good parts look like and leave a run folder; the fitted detector comes out, ready to predict.

    Args:
        method: a key of `METHODS`.
        data: data root, category folder, or plain folder of good images.
        out: the run folder; new or empty, unless `resume`.
        categories: names; one for a method of scope "category", any number (none = all) for one of scope "dataset".
        settings: tables as in a settings file: `{"training": {"preset": "quick"}}`.
        resume: go on with an interrupted fit; exactly, or not at all.
        inexact: resume even where it cannot be exact.
        watch: called after every step.
        progress: called while images are decoded.
        say: called with a line worth reading.

    Raises:
        ThreeCADError: whatever the user can mend.
        Interrupted: Ctrl-C; `resume` goes on.
    """
    run, resolved = RunFolder(Path(out)), resolve_settings(method, settings or {})
    fabric = _fabric(resolved)
    before = run.read_record() if resume and run.record_file.exists() else None
    if before:
        _refuse_other_settings(before, method, resolved)
    if not resume and fabric.global_rank == 0:
        run.refuse_unless_free()
    found = _read_data(method, Path(data), categories, resolved)
    textures = texture_source(resolved.data.textures)
    fabric.launch()
    device = best_device() if fabric.world_size == 1 else fabric.device
    seed_everything((resolved.training.seed, _BUILD), device)
    detector = METHODS[method](resolved.method)
    plan = plan_fit(detector, textures, resolved.training, len(found.learnt))
    record = _describe(method, resolved, found, plan, detector, fabric)
    if before:
        _refuse_other_conditions(before, record, inexact, say)
        if before.finished:
            say(f"{run.path} is finished already")
            return run.load_detector()[0]
    size = resolved.method.image_size
    images = _pixels(found.learnt, found, size, progress)  # first, so that a broken image leaves no folder behind
    if fabric.is_global_zero and not before:
        run.create(record, resolved)
    fabric.barrier()

    detector = detector.to(fabric.device).to(memory_format=torch.channels_last)
    seconds = train(detector, images, textures, resolved.training, plan, run, fabric, watch)
    if fabric.is_global_zero:
        record.duration_s = round(seconds, 1)
        held_out = _pixels(found.held_out, found, size, progress)
        seen = list(predict(detector, held_out, record.precision))
        record.good_scores = [found.score for found in seen]
        record.good_peaks = [float(found.anomaly_map.max()) for found in seen]
        run.save_detector(detector, record)
    fabric.barrier()
    return detector.eval()


def _fabric(settings: Settings) -> Fabric:
    """Fabric for the asked number of devices; its launcher runs the same command again for each further one."""
    device, devices = best_device(), settings.training.devices
    precision = resolve_precision(settings.training.precision, device)
    return Fabric(
        accelerator=device.type,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )


def _read_data(method: str, root: Path, names: Sequence[str], settings: Settings) -> FitData:
    categories = read_categories(root, names)
    if METHODS[method].scope == "category" and len(categories) > 1:
        known = ", ".join(category.name for category in categories)
        raise DataError(
            f"'{method}' learns one category at a time, found {len(categories)} in {root}:\n{known}\n"
            "Name one with --category, and fit each into its own --out."
        )
    if settings.data.exclude is not None:
        categories = [exclude(category, settings.data.exclude) for category in categories]
    learnt: list[Sample] = []
    held_out: list[Sample] = []
    for category in categories:
        if not category.train:
            raise DataError(f"{category.folder}: expected good images to learn from, found test images alone")
        if category.validation:
            kept, aside = list(category.train), list(category.validation)
        else:
            kept, aside = _hold_out(category.train, settings.data.holdout, settings.training.seed)
        learnt += kept
        held_out += aside
    hashes = dict(zip([s.image for s in learnt], content_hashes([s.image for s in learnt]), strict=True))
    return FitData(categories, learnt, held_out, fingerprint(learnt, hashes.__getitem__))


def _hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from, and a random `share` of them kept aside; at least two are learnt from."""
    count = min(round(share * len(samples)), max(len(samples) - 2, 0))
    aside = set(np.random.default_rng([seed, len(samples)]).permutation(len(samples))[:count].tolist())
    kept = [sample for index, sample in enumerate(samples) if index not in aside]
    return kept, [sample for index, sample in enumerate(samples) if index in aside]


def _pixels(samples: Sequence[Sample], data: FitData, size: tuple[int, int], progress: Progress | None) -> Rows:
    """Rows of the pack of all good images, so that another hold-out decodes nothing anew."""
    everything = [sample for category in data.categories for sample in (*category.train, *category.validation)]
    chosen = {sample.image for sample in samples}
    wanted = [index for index, sample in enumerate(everything) if sample.image in chosen]
    return Rows(load_images(everything, size, progress), np.array(wanted, dtype=np.int64))


def _describe(
    method: str, settings: Settings, data: FitData, plan: FitPlan, detector: Detector, fabric: Fabric
) -> RunRecord:
    """What `run.json` says before the first step."""
    file = backbone_file(detector)
    return RunRecord(
        method=method,
        categories=[category.name for category in data.categories],
        settings=settings.as_tables(),
        seed=settings.training.seed,
        preset=settings.training.preset,
        precision=resolve_precision(settings.training.precision, fabric.device),
        threads=torch.get_num_threads(),
        devices=fabric.world_size,
        steps=plan.optimizer_steps,
        backbone=getattr(settings.method, "backbone", None),
        weights_sha256=file_sha256(file) if file else None,
        texture_source=plan.textures,
        data_fingerprint=data.fingerprint,
        exclusions=_lines(settings.data.exclude),
        holdout=[data.categories[0].path_in_root(sample.image) for sample in data.held_out],
    )


def _lines(file: Path | None) -> list[str]:
    """The image paths of an exclusion list, with forward slashes."""
    lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
    paths = [line.strip().replace("\\", "/").removeprefix("./") for line in lines]
    return [path for path in paths if path and not path.startswith("#")]


def _refuse_other_settings(before: RunRecord, method: str, settings: Settings) -> None:
    """Nothing, where a run to be resumed is one of this method with these settings.

    Raises:
        RunError: it is not.
    """
    if before.method != method:
        raise RunError(f"the run is a fit of '{before.method}', asked was '{method}'; choose another --out")
    for table, values in settings.as_tables().items():
        for key in sorted(values.keys() | before.settings.get(table, {}).keys()):
            was, asked = before.settings.get(table, {}).get(key), values.get(key)
            if was != asked and (table, key) != ("training", "checkpoint_s"):
                raise RunError(
                    f"the run was started with {table}.{key} = {was!r}, asked is {asked!r}; "
                    "resume with the run's own settings (--config RUN/settings.toml), or choose another --out"
                )


def _refuse_other_conditions(before: RunRecord, now: RunRecord, inexact: bool, say: Callable[[str], None]) -> None:
    """Nothing, where going on gives the same numbers as an uninterrupted fit.

    Raises:
        RunError: another machine, version or data, unless `inexact`.
    """
    facts = (
        "precision",
        "threads",
        "devices",
        "version",
        "libraries",
        "data_fingerprint",
        "texture_source",
        "weights_sha256",
    )
    differ = [name for name in facts if getattr(before, name) != getattr(now, name)]
    if differ:
        what = "; ".join(f"{name} was {getattr(before, name)}, is {getattr(now, name)}" for name in differ)
        if not inexact:
            raise RunError(f"resuming would not give the same numbers: {what}\nAllow that with --inexact, or fit anew.")
        say(f"resuming inexactly: {what}")
