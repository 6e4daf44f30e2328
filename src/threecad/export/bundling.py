"""A run in, a proved bundle out; or a line that says why not, and nothing."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from threecad.checkpoint import load_detector
from threecad.errors import BundleError, SettingsError
from threecad.export.capture import capture, model_info, write_model
from threecad.export.good_parts import scored_as_here
from threecad.export.pictures import ProofPictures, gather_pictures
from threecad.export.wheels import gather_wheels
from threecad.files import appearing, file_sha256, write_json
from threecad.images import read_image, resize_image, write_png
from threecad.inference import predictor_of, recorded_framing
from threecad.overlay import Scale, side_by_side
from threecad.predictor import BATCH, Found, Predictor
from threecad.runs import RunFolder, RunRecord
from threecad.runtime.bundle import Backend, Bundle, BundleRecord, digest
from threecad.runtime.networks import SETTINGS, open_network
from threecad.runtime.proof import Picture, Proof, compare, look, prove, ran, source_of, thresholds_of
from threecad.verdicts import BUDGETS, Verdicts, write_verdicts

TRAVEL = 3
"""Pictures of each kind that travel along."""

TRAVEL_BYTES = 2**22
"""Largest file that travels."""

REFUSED = {
    "bf16": "nearly equal features then differ by their rounding, even where distances are float32",
    "int8": "quantised features give other distances than those that the run's statistics were learnt from",
}
"""Precisions that are not offered, and why."""


def export_run(
    run: Path,
    out: Path,
    backend: Backend,
    *,
    data: Path | None = None,
    good: Sequence[Path] = (),
    precision: str = "float32",
    pictures: bool = True,
    wheels: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Proof:
    """The proof of the bundle that is then in `out`.

    Args:
        data: the data root of the fit, where the pictures of the proof are.
        good: images and folders of good parts that were calibrated with, if they have to be scored again.
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
    folder = RunFolder(run)
    detector, record = load_detector(folder)
    program = capture(copy.deepcopy(detector))  # a predictor moves the original to its device
    trained = predictor_of(detector, record, recorded_framing(folder, record), precision="float32")
    verdicts = _verdicts(folder, record, trained, data, good, backend, notify)
    with appearing(out) as building, tempfile.TemporaryDirectory() as made:
        bundle, workspace = Bundle(building), Path(made)
        shown = gather_pictures(record, trained, data, workspace)
        words = model_info(record.method, trained.image_size, _map_scale(trained, verdicts))
        model, opset = write_model(program, backend, bundle.path, words, trained.image_size)
        about = _record(record, trained, verdicts, backend, model, opset)
        network = open_network(bundle.path / model, about, None, None)
        exported = replace(trained, network=network, verdicts=verdicts, conditions=about.conditions)
        proof = _proved(bundle, trained, exported, shown, travel=pictures)
        write_verdicts(bundle.path, verdicts)
        if record.region_fill is not None:
            shutil.copyfile(folder.region_file, bundle.region_file)
        if record.reach is not None:
            shutil.copyfile(folder.golden_file, bundle.golden_file)
        _add_licenses(bundle.path)
        files = sorted(file for file in bundle.path.rglob("*") if file.is_file())
        places = {file.relative_to(bundle.path).as_posix(): file for file in files}
        about.files = {place: file_sha256(file) for place, file in places.items() if place != BUDGETS}
        about.sha256 = digest(about)
        write_json(bundle.record_file, about.model_dump(mode="json"))
        if wheels:
            gather_wheels(backend, bundle.path / "wheels")  # pip checks their hashes, not every start
    return proof


def _verdicts(
    folder: RunFolder,
    record: RunRecord,
    trained: Predictor,
    data: Path | None,
    further: Sequence[Path],
    backend: Backend,
    notify: Callable[[str], None],
) -> Verdicts:
    """The run's budgets, with its good parts as a bundle of this backend scores them."""
    verdicts = folder.read_verdicts()
    good = scored_as_here(verdicts.good, record, trained, data, further)
    if good is not verdicts.good:
        notify("good parts are scored again in float32, as a bundle computes")
    conditions = record.conditions(trained.image_size, trained.precision, backend)
    return replace(verdicts, good=good.model_copy(update={"conditions": dict(conditions)}))


def _proved(bundle: Bundle, trained: Predictor, exported: Predictor, shown: ProofPictures, travel: bool) -> Proof:
    """The proof, written into the bundle with the pictures that travel along.

    Raises:
        BundleError: a verdict differs.
    """
    pictures, verdicts = shown.pictures, exported.verdicts
    files = [picture.path for picture in pictures]
    before, after = look(trained, files, BATCH), look(exported, files)  # one at a time, as on the line
    seen: dict[str, list[float]] = {picture.category: [] for picture in pictures}
    for picture, found in zip(pictures, before, strict=True):
        if picture.kind == "good":
            seen[picture.category].append(found.score)
    thresholds = {name: thresholds_of(verdicts, name, scores) for name, scores in seen.items()}
    compared = compare(
        pictures,
        [found.score for found in before],
        [found.anomaly_map for found in before],
        after,
        verdicts,
        thresholds,
    )
    proof = prove(
        compared,
        ran(trained, f"torch {torch.__version__}"),
        ran(exported),
        verdicts.settings,
        thresholds,
        source_of(verdicts, list(seen)),
        shown.good_parts,
        shown.defective_parts,
    )
    proof.refuse_flips("no bundle was written")
    write_json(bundle.proof_file, proof.model_dump(mode="json"))
    if travel:
        _send_along(bundle, pictures, [one.sha256 for one in compared], before, after, exported)
    return proof


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
            its_map = exported[index].at(predictor.image_size)
            scale = Scale.of_good(predictor.verdicts, picture.category) or Scale.of_map(its_map)
            rows.append(side_by_side(pixels, None, its_map, scale))
    if rows:
        np.savez_compressed(bundle.maps_file, **maps)  # type: ignore[arg-type]
        write_png(bundle.path / "examples.png", np.concatenate(rows))


def _record(
    record: RunRecord, trained: Predictor, verdicts: Verdicts, backend: Backend, model: str, opset: int | None
) -> BundleRecord:
    names = ("version", "precision", "hardware", "seed", "preset", "data_fingerprint", "scoring", "detector_sha256")
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
        tiles=trained.view.tiles,
        region_fill=record.region_fill,
        region_is_exact=record.region_is_exact,
        reach=record.reach,
        map_units=record.map_units,
        conditions=verdicts.good.conditions,
        fit={name: getattr(record, name) for name in names},
        versions={name: importlib.metadata.version(name) for name in made_by},
        files={},
    )


def _map_scale(predictor: Predictor, verdicts: Verdicts) -> Scale | None:
    """Of the network's own maps: None where it does not see pictures as they come, or each category has its own."""
    if len(verdicts.good.parts) != 1 or not predictor.view.only_resizes:
        return None
    return Scale.of_good(verdicts)


def _add_licenses(folder: Path) -> None:
    """ThreeCAD's license and notice, as they were installed."""
    for file in importlib.metadata.files("threecad") or []:
        if "licenses" in file.parts:
            (folder / "licenses").mkdir(exist_ok=True)
            shutil.copyfile(file.locate(), folder / "licenses" / file.name)


def _refuse_unless_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"expected a new or an empty folder for the bundle, found {out}; choose another --out")
