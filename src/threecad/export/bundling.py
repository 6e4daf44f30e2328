"""A run in, a proved bundle out; or a line that says why not, and nothing."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threecad.checkpoint import load_detector
from threecad.errors import BundleError, SettingsError
from threecad.export.capture import capture, model_info, write_model
from threecad.export.pictures import ProofPictures, gather_pictures, kept_aside
from threecad.export.wheels import gather_wheels
from threecad.files import write_json, writing
from threecad.images import read_image, resize_image, write_png
from threecad.inference import predictor_of
from threecad.overlay import Scale, side_by_side
from threecad.predictor import BATCH, Found, GoodParts, Predictor
from threecad.runs import RunFolder, RunRecord
from threecad.runtime.bundle import Backend, Bundle, BundleRecord, digest, file_sha256
from threecad.runtime.networks import SETTINGS, open_network
from threecad.runtime.proof import Picture, Proof, Thresholds, compare, look, prove, provisional, ran, thresholds_of

TRAVEL = 3
"""Pictures of each kind that travel along."""

TRAVEL_BYTES = 2**22
"""Largest file that travels."""

REFUSED = {
    "bf16": "a machine's bf16 reaches into distances of nearly equal features, whose maps it makes useless",
    "int8": "quantised features give other distances than those that the run's statistics were learnt from",
}
"""Precisions that are not offered, and why."""


def export_run(
    run: Path,
    out: Path,
    backend: Backend,
    *,
    data: Path | None = None,
    precision: str = "float32",
    pictures: bool = True,
    wheels: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Proof:
    """The proof of the bundle that is then in `out`.

    Args:
        data: the data root of the fit, where the pictures of the proof are.
        pictures: let a few of them travel along, so that the proof can be repeated elsewhere.
        wheels: put what has to be installed where there is no internet into `out`/wheels; asks the package index.
        notify: called with a line worth reading.

    Raises:
        RunError: there is no finished run.
        SettingsError: a precision that is not offered.
        DataError: the data root is not the fit's.
        BundleError: the method cannot be exported, the exported detector gives another verdict, or the run's good parts
            were scored in another precision and cannot be scored again.
        FileError: `out` cannot be written.
    """
    if precision != "float32":
        why = f": {REFUSED[precision]}" if precision in REFUSED else ""
        raise SettingsError(f"expected precision float32, found '{precision}'{why}")
    _refuse_unless_free(out)
    detector, record = load_detector(RunFolder(run))
    program = capture(copy.deepcopy(detector))  # a predictor moves the original to its device
    trained = predictor_of(detector, record, precision="float32")
    if record.precision != "float32":
        trained = _compared_in_float32(trained, record, run, data)
        notify(
            f"the run was fitted in {record.precision}: its good parts are scored again in float32, as a bundle does"
        )
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".threecad-") as temporary:
            bundle, workspace = Bundle(Path(temporary) / "bundle"), Path(temporary) / "made"
            bundle.path.mkdir()
            shown = gather_pictures(record, data, workspace)
            words = model_info(record.method, trained.image_size, _any_scale(trained))
            model, opset = write_model(program, backend, bundle.path, words)
            about = _record(record, trained, backend, model, opset)
            network = open_network(bundle.path / model, about, None, None)
            exported = Predictor(network, record.method, trained.good, trained.decoding)
            proof = _proved(bundle, run, record, trained, exported, shown, travel=pictures)
            _add_licenses(bundle.path)
            files = sorted(file for file in bundle.path.rglob("*") if file.is_file())
            about.files = {file.relative_to(bundle.path).as_posix(): file_sha256(file) for file in files}
            about.sha256 = digest(about)
            write_json(bundle.record_file, about.model_dump(mode="json"))
            if wheels:
                gather_wheels(backend, bundle.path / "wheels")  # pip checks their hashes, not every start
            if out.is_dir():
                out.rmdir()  # empty, as was seen
            bundle.path.replace(out)
    return proof


def _compared_in_float32(trained: Predictor, record: RunRecord, run: Path, data: Path | None) -> Predictor:
    """The predictor with good parts as it sees them in float32, where the fit has seen them in another precision.

    Raises:
        BundleError: they are not at hand, or thresholds were learnt from them.
    """
    if (run / "verdict.toml").is_file():
        raise BundleError(
            f"the thresholds of {run} were learnt in {record.precision}, a bundle computes in float32; "
            "fit with --set training.precision=float32"
        )
    if record.holdout and data is None:
        raise BundleError(
            f"the good parts of {run} were scored in {record.precision}, a bundle computes in float32; "
            "give --data ROOT so that they are scored again"
        )
    aside = kept_aside(record, data) if data else []
    good = {}
    for name in record.categories:
        found = look(trained, [picture.path for picture in aside if picture.category == name], BATCH)
        good[name] = GoodParts([one.score for one in found], [float(one.anomaly_map.max()) for one in found])
    return replace(trained, good=good)


def _proved(
    bundle: Bundle,
    run: Path,
    record: RunRecord,
    trained: Predictor,
    exported: Predictor,
    shown: ProofPictures,
    travel: bool,
) -> Proof:
    """The proof, written into the bundle with the pictures that travel along.

    Raises:
        BundleError: a verdict differs.
    """
    files = [picture.path for picture in shown.pictures]
    before, after = look(trained, files, BATCH), look(exported, files)  # one at a time, as on the line
    thresholds, source = _thresholds(bundle, run, record, trained, shown.pictures, before)
    compared = compare(
        shown.pictures,
        [found.score for found in before],
        [found.anomaly_map for found in before],
        after,
        thresholds,
    )
    engine = f"torch {torch.__version__}"
    proof = prove(
        compared, ran(trained, engine), ran(exported), thresholds, source, shown.good_parts, shown.defective_parts
    )
    proof.refuse_flips("no bundle was written")
    write_json(bundle.proof_file, proof.model_dump(mode="json"))
    if travel:
        _send_along(bundle, shown.pictures, [one.sha256 for one in compared], before, after, exported)
    return proof


def _thresholds(
    bundle: Bundle,
    run: Path,
    record: RunRecord,
    trained: Predictor,
    pictures: Sequence[Picture],
    found: Sequence[Found],
) -> tuple[dict[str, Thresholds], str]:
    """Thresholds by category, and where they come from; the run's `verdict.toml` travels along."""
    file = run / bundle.verdict_file.name
    if file.is_file():
        shutil.copyfile(file, bundle.verdict_file)
        return dict(thresholds_of(file.read_text(encoding="utf-8"), record.categories)), "verdict.toml"
    seen = [one.score for picture, one in zip(pictures, found, strict=True) if picture.kind == "good"]
    source = "just above the good parts kept aside" if record.holdout else "just above the good parts of this proof"
    return {name: provisional(good.scores or seen) for name, good in trained.good.items()}, source


def _send_along(
    bundle: Bundle,
    pictures: Sequence[Picture],
    hashes: Sequence[str],
    trained: Sequence[Found],
    exported: Sequence[Found],
    predictor: Predictor,
) -> None:
    """Copy a few pictures of each kind, the trained detector's maps of them, and a sheet that shows them."""
    maps, rows = {}, []
    for kind in ("good", "defective"):
        small = [
            index
            for index, picture in enumerate(pictures)
            if picture.kind == kind and picture.path.stat().st_size <= TRAVEL_BYTES
        ]
        for index in small[:: max(1, len(small) // TRAVEL)][:TRAVEL]:
            picture = pictures[index]
            target = bundle.pictures / picture.place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture.path, target)
            maps[hashes[index]] = trained[index].anomaly_map
            pixels = resize_image(read_image(picture.path, **predictor.decoding), predictor.image_size)
            its_map = exported[index].anomaly_map
            scale = predictor.good[picture.category].scale or Scale.of_map(its_map)
            rows.append(side_by_side(pixels, None, its_map, scale))
    if rows:
        np.savez_compressed(bundle.maps_file, **maps)  # type: ignore[arg-type]
        write_png(bundle.path / "examples.png", np.concatenate(rows))


def _record(record: RunRecord, trained: Predictor, backend: Backend, model: str, opset: int | None) -> BundleRecord:
    conditions: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("version", "precision", "hardware", "seed", "preset", "data_fingerprint", "detector_sha256")
    }
    made_by = ("threecad", "torch", *(("onnx", "onnxscript") if backend == "onnx" else ("openvino",)))
    return BundleRecord(
        backend=backend,
        model=model,
        opset=opset,
        method=record.method,
        categories=record.categories,
        image_size=trained.image_size,
        decoding=dict(trained.decoding),
        settings=SETTINGS[backend],
        good_scores={name: list(good.scores) for name, good in trained.good.items()},
        good_peaks={name: list(good.peaks) for name, good in trained.good.items()},
        conditions=conditions,
        versions={name: importlib.metadata.version(name) for name in made_by},
        files={},
    )


def _any_scale(predictor: Predictor) -> Scale | None:
    """Of all categories' good parts together."""
    return GoodParts(peaks=[peak for good in predictor.good.values() for peak in good.peaks]).scale


def _add_licenses(folder: Path) -> None:
    """ThreeCAD's license and notice, as they were installed."""
    for file in importlib.metadata.files("threecad") or []:
        if "licenses" in file.parts:
            (folder / "licenses").mkdir(exist_ok=True)
            shutil.copyfile(file.locate(), folder / "licenses" / file.name)


def _refuse_unless_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"expected a new or an empty folder for the bundle, found {out}; choose another --out")
