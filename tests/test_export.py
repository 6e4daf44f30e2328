"""Export: every method in both backends, a proof that can fail, and nothing handed over when it does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import threecad
from conftest import HEIGHT, WIDTH, need_backends, plate, save
from threecad.calibrating import calibrate
from threecad.cli import app
from threecad.errors import BundleError, DataError, RunError, SettingsError
from threecad.export import bundling
from threecad.export.bundling import export_run
from threecad.export.capture import capture, write_model
from threecad.export.good_parts import scored_as_here
from threecad.files import file_sha256
from threecad.fitting import fit
from threecad.framing import Framing
from threecad.images import read_image
from threecad.methods import METHODS
from threecad.predictor import Found
from threecad.runs import RunFolder
from threecad.runtime.bundle import Bundle, BundleRecord
from threecad.runtime.networks import SETTINGS, OnnxNetwork, OpenVINONetwork, import_openvino
from threecad.runtime.proof import Picture, Ran, compare, prove, source_of, thresholds_of
from threecad.runtime.verification import read_proof, verify
from threecad.tensors import to_tensor
from threecad.verdicts import AREAS_PX, GoodPart, GoodScores, Verdicts, VerdictSettings, read_verdicts, write_verdicts

BACKENDS = ("onnx", "openvino")


@pytest.fixture(autouse=True)
def backends() -> None:
    """What every test here needs."""
    need_backends()


@pytest.fixture
def data(fitted: Path) -> Path:
    """The data root of `fitted`."""
    return fitted.parent / "data"


@pytest.fixture
def written(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of `fitted` is not captured once more: its ONNX file is taken from its bundle."""

    def copy(program: object, backend: str, folder: Path, about: object, image_size: object) -> tuple[str, int]:
        shutil.copyfile(bundles["onnx"] / "detector.onnx", folder / "detector.onnx")
        return "detector.onnx", 20

    monkeypatch.setattr(bundling, "capture", lambda detector: None)
    monkeypatch.setattr(bundling, "write_model", copy)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "ours"), [*((name, {}) for name in METHODS), ("cfrg", {"calibrated": True})])
def test_every_method_says_the_same_in_both_backends_whatever_the_batch(
    method: str, ours: dict[str, bool], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = METHODS[method](METHODS[method].Config.tiny().model_copy(update=ours)).eval()
    size = detector.config.image_size
    program = capture(detector)
    files = {backend: tmp_path / write_model(program, backend, tmp_path, {}, size)[0] for backend in BACKENDS}  # type: ignore[arg-type]
    networks = [
        OnnxNetwork(files["onnx"], size, SETTINGS["onnx"]),
        OpenVINONetwork(files["openvino"], size, "cpu", SETTINGS["openvino"]),
    ]
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = detector(to_tensor(pixels))
        for network in networks:
            maps, scores = network(pixels)
            reach = float(expected.anomaly_map.abs().max())
            np.testing.assert_allclose(maps, expected.anomaly_map[:, 0].numpy(), rtol=0, atol=1e-4 * max(reach, 1))
            np.testing.assert_allclose(scores, expected.score.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_says_what_it_is_and_what_every_file_in_it_is(backend: str, bundles: dict[str, Path]) -> None:
    bundle = Bundle(bundles[backend])
    record = bundle.read_record()
    files = {file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file()}
    assert set(record.files) == files - {"bundle.json", "verdict.toml"}
    assert {"proof.json", "maps.npz", "examples.png", "licenses/LICENSE", "licenses/NOTICE"} < files
    assert all(file_sha256(bundle.path / place) == expected for place, expected in record.files.items())
    assert (record.method, record.image_size, record.precision) == ("padim", (64, 64), "float32")
    assert {"good.json", "verdict.toml"} < files
    assert record.conditions["backend"] == backend


def test_an_onnx_file_is_one_file_of_a_known_opset_in_the_words_of_model_api(bundles: dict[str, Path]) -> None:
    import onnx

    record, good = Bundle(bundles["onnx"]).read_record(), read_verdicts(bundles["onnx"]).good
    model = onnx.load(bundles["onnx"] / "detector.onnx")
    onnx.checker.check_model(model)
    assert record.opset in [one.version for one in model.opset_import]
    assert [tensor.name for tensor in model.graph.initializer if tensor.external_data] == []
    words = {one.key: one.value for one in model.metadata_props}
    assert words["model_info model_type"] == "AnomalyDetection"
    assert float(words["model_info pixel_threshold"]) > float(np.median(good.peaks("plate")))
    assert [one.name for one in model.graph.output] == ["anomaly_map", "score"]


def test_an_openvino_model_keeps_float32_and_the_words_of_model_api(bundles: dict[str, Path]) -> None:
    openvino = import_openvino()
    model = openvino.Core().read_model(bundles["openvino"] / "detector.xml")
    assert model.get_rt_info(["model_info", "model_type"]).astype(str) == "AnomalyDetection"
    assert [output.get_any_name() for output in model.outputs] == ["anomaly_map", "score"]
    assert str(model.inputs[0].partial_shape) == "[?,3,64,64]"
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    types = {op.get_output_element_type(0).get_type_name() for op in constants}
    assert "f32" in types and not types & {"f16", "bf16"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_proof_is_of_the_parts_kept_aside_and_of_the_defective_ones(backend: str, bundles: dict[str, Path]) -> None:
    proof = read_proof(Bundle(bundles[backend]))
    assert [one.kind for one in proof.images].count("good") == 6
    assert [one.kind for one in proof.images].count("defective") == 4
    assert (proof.good_parts, proof.defective_parts) == ("kept aside by the fit", "of the test folder")
    assert (proof.verdict_flips, proof.trained.precision, proof.exported.precision) == (0, "float32", "float32")
    assert proof.largest_score_difference < 1e-4 and (proof.largest_map_difference or 0) < 1e-3
    assert proof.exported.engine.startswith({"onnx": "onnxruntime", "openvino": "openvino"}[backend])


@pytest.mark.parametrize("backend", BACKENDS)
def test_verify_repeats_the_proof_with_the_pictures_that_travel_and_with_those_of_a_folder(
    backend: str, bundles: dict[str, Path], data: Path
) -> None:
    inside, outside = verify(bundles[backend]), verify(bundles[backend], data)
    assert (len(inside.images), len(outside.images)) == (6, 10)
    assert inside.largest_map_difference is not None
    assert outside.largest_score_difference == pytest.approx(
        read_proof(Bundle(bundles[backend])).largest_score_difference, abs=1e-5
    )


def test_verify_says_where_none_of_its_pictures_are(bundles: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "other" / "part.png", plate(99))
    with pytest.raises(BundleError, match=r"found that none lie in .*other"):
        verify(bundles["onnx"], tmp_path / "other")


class Shifted(OnnxNetwork):
    """A backend that computes something else."""

    shift = 1.0

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps, scores = super().__call__(pixels)
        return maps, scores + np.float32(self.shift)


def shifted(file: Path, record: BundleRecord, *_: object) -> Shifted:
    """In place of `open_network`."""
    return Shifted(file, record.image_size, record.settings)


@pytest.mark.parametrize("shift", [1.0, np.nan])
@pytest.mark.usefixtures("written")
def test_an_exported_detector_that_judges_otherwise_is_not_handed_over(
    shift: float, fitted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shifted, "shift", shift)
    monkeypatch.setattr(
        bundling, "open_network", lambda file, record, *_: Shifted(file, record.image_size, record.settings)
    )
    with pytest.raises(BundleError, match=r"judges [0-9]+ of 10 pictures differently|not finite") as raised:
        export_run(fitted, tmp_path / "out" / "bundle", "onnx", data=data)
    assert "plate/train/good/" in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_verdict_that_differs_on_another_machine_ends_verify_with_2(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "threecad.runtime.open_network", lambda file, record, *_: Shifted(file, record.image_size, record.settings)
    )
    with pytest.raises(BundleError, match=r"judges [0-9]+ of 6 pictures differently; do not use it on this machine"):
        verify(bundles["onnx"])


def found(score: float, value: float = 0.0) -> Found:
    return Found(np.full((1, 2, 2), value, np.float32), score, Framing((2, 2)), (2, 2))


def known(scores: Sequence[float]) -> Verdicts:
    """Verdicts that stand on good parts of these scores; REVIEW above all but the highest, NG above all."""
    parts = [GoodPart(part=str(n), score=score, peaks=(score,) * len(AREAS_PX)) for n, score in enumerate(scores)]
    budgets = VerdictSettings(rule="average", review_at=2 / (len(scores) + 1), reject_at=1 / (len(scores) + 1))
    return Verdicts(GoodScores(parts={"plate": tuple(parts)}), budgets)


def test_the_figures_of_a_proof_are_those_of_its_pictures(tmp_path: Path) -> None:
    pictures = [Picture(save(tmp_path / f"{n}.png", plate(n)), f"{n}.png", "good", "plate") for n in range(4)]
    verdicts = known([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    lines = {"plate": thresholds_of(verdicts, "plate", [])}
    assert lines == {"plate": {"REVIEW": 2.0, "NG": 3.0}}
    trained, exported = [1.0, 2.0, 2.5, 3.5], [found(1.25), found(2.25), found(3.25, 0.5), found(3.0)]
    compared = compare(pictures, trained, [np.zeros((2, 2))] * 4, exported, verdicts, lines)
    where = Ran(engine="a", precision="float32", device="cpu", machine="b")
    proof = prove(compared, where, where, verdicts.settings, lines, "by hand", "four", "none")
    assert [one.trained_verdict for one in proof.images] == ["OK", "OK", "REVIEW", "NG"]
    assert [one.exported_verdict for one in proof.images] == ["OK", "REVIEW", "NG", "REVIEW"]
    assert proof.on_the_line == 1  # the second one's score is the threshold
    assert (proof.verdict_flips, [one.image for one in proof.flips]) == (2, ["2.png", "3.png"])
    assert (proof.largest_score_difference, proof.largest_map_difference) == (0.75, 0.5)
    assert proof.nearest_to_threshold == 0.5
    assert proof.rank_correlation == pytest.approx(0.8)  # ranks 1 2 3 4 against 1 2 4 3


def test_too_few_good_parts_for_a_verdict_get_a_threshold_of_the_proofs_own_and_it_says_so(tmp_path: Path) -> None:
    verdicts = known([1.0, 2.0])
    lines = {"plate": thresholds_of(verdicts, "plate", [1.0, 2.0, 3.0])}
    assert lines["plate"]["unusual"] == pytest.approx(3.05)
    assert source_of(verdicts, ["plate"]) == (
        "just above the good parts of this proof in plate: verdicts need 5 good parts"
    )
    pictures = [Picture(save(tmp_path / "0.png", plate(0)), "0.png", "good", "plate")] * 2
    compared = compare(pictures, [3.0, 3.1], [None, None], [found(3.2), found(3.2)], verdicts, lines)
    assert [one.is_flip for one in compared] == [True, False]


@pytest.mark.usefixtures("written")
def test_the_runs_budgets_decide_in_the_proof_and_travel_along(fitted: Path, data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    budgets = VerdictSettings(rule="average", review_at=0.4, reject_at=0.2)
    verdicts = replace(read_verdicts(run), settings=budgets)
    write_verdicts(run, verdicts)
    proof = export_run(run, tmp_path / "bundle", "onnx", data=data)
    review, reject, _ = verdicts.limits("plate")
    assert proof.thresholds == {"plate": {"REVIEW": review.threshold, "NG": reject.threshold}}
    assert proof.on_the_line >= 1 and ("scores on a threshold", str(proof.on_the_line)) in proof.summary()
    assert read_verdicts(tmp_path / "bundle").settings == budgets
    assert read_verdicts(tmp_path / "bundle").good.scores().tolist() == verdicts.good.scores().tolist()


@pytest.mark.usefixtures("written")
def test_good_parts_of_a_run_in_bf16_are_scored_again_in_float32(fitted: Path, data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    exact = read_verdicts(run)
    shifted = tuple(part.model_copy(update={"score": part.score + 0.1}) for part in exact.good.of("plate"))
    rounded = {"conditions": {**exact.good.conditions, "precision": "bf16"}, "parts": {"plate": shifted}}
    write_verdicts(run, replace(exact, good=exact.good.model_copy(update=rounded)))
    said: list[str] = []
    export_run(run, tmp_path / "bundle", "onnx", data=data, notify=said.append)
    good = read_verdicts(tmp_path / "bundle").good
    np.testing.assert_allclose(good.scores(), exact.good.scores(), rtol=1e-5)
    assert "scored again in float32" in said[0]
    assert (good.conditions["precision"], good.conditions["backend"]) == ("float32", "onnx")
    with pytest.raises(BundleError, match="precision was bf16, is float32; give --data ROOT"):
        export_run(run, tmp_path / "another", "onnx")


@pytest.mark.usefixtures("written")
def test_parts_that_were_calibrated_with_in_bf16_are_scored_again_where_their_pictures_are_given(
    fitted: Path, data: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    later = tmp_path / "later"
    later.mkdir()
    save(later / "new.png", plate(900))
    save(later / "never calibrated with.png", plate(901))
    calibrate(run, [later / "new.png"])
    exact = read_verdicts(run)
    rough = tuple(part.model_copy(update={"score": part.score + 0.1}) for part in exact.good.of("plate"))
    rounded = {"conditions": {**exact.good.conditions, "precision": "bf16"}, "parts": {"plate": rough}}
    write_verdicts(run, replace(exact, good=exact.good.model_copy(update=rounded)))
    with pytest.raises(
        BundleError,
        match=rf"1 of {len(rough)} were not kept aside by the fit: give --good FOLDER .*--anew --precision float32",
    ):
        export_run(run, tmp_path / "bundle", "onnx", data=data)
    export_run(run, tmp_path / "bundle", "onnx", data=data, good=[later])
    good = read_verdicts(tmp_path / "bundle").good
    assert [part.part for part in good.of("plate")] == [part.part for part in exact.good.of("plate")]
    np.testing.assert_allclose(good.scores(), exact.good.scores(), rtol=1e-5)


def test_a_fit_that_scores_its_parts_in_closed_form_can_be_exported_where_the_processor_has_bf16(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threecad.devices.has_native_bf16", lambda device: True)
    method = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}
    fit("padim", data, tmp_path / "run", settings={"method": method})
    record = RunFolder(tmp_path / "run").read_record()
    assert (record.scoring, record.precision) == ("left out", "float32")
    good = read_verdicts(tmp_path / "run").good
    predictor = threecad.load(tmp_path / "run")
    assert scored_as_here(good, record, predictor, None) is good
    asked = {"method": method, "training": {"precision": "bf16"}}
    fit("padim", data, tmp_path / "rough", settings=asked)
    assert RunFolder(tmp_path / "rough").read_record().precision == "bf16"


@pytest.mark.parametrize(
    "setting",
    [
        {"tiles": (1, 2)},
        {"roi": "roi.png"},
        {"registration": True, "holdout": 0.25},
        pytest.param({"tiles": (1, 2), "each": True}, marks=pytest.mark.slow),
    ],
)
def test_a_bundle_sees_tiles_the_region_of_interest_and_the_golden_part_as_its_run_does(
    setting: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    if "roi" in setting:
        inside = np.zeros((HEIGHT, WIDTH), np.uint8)
        inside[8:40, 8:56] = 255
        setting = {"roi": save(tmp_path / "roi.png", inside)}
    method = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 32, "features": 12}
    settings = {"method": method, "data": {"holdout": 0.5, **setting}, "training": {"precision": "float32"}}
    fit("padim", data, tmp_path / "run", settings=settings)
    with pytest.raises(DataError, match="give --data ROOT"):
        export_run(tmp_path / "run", tmp_path / "bundle", "onnx")
    export_run(tmp_path / "run", tmp_path / "bundle", "onnx", data=data)
    run, bundle = threecad.load(tmp_path / "run"), threecad.load(tmp_path / "bundle")
    part = plate(300)
    part[20:24, 30:36] = 0
    expected, answered = run(part), bundle(part)
    assert (answered.verdict, answered.good_share) == (expected.verdict, expected.good_share)
    assert [one.box for one in answered.regions] == [one.box for one in expected.regions]
    assert answered.score == pytest.approx(expected.score, rel=1e-3)
    np.testing.assert_allclose(answered.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)
    assert verify(tmp_path / "bundle").verdict_flips == 0


@pytest.mark.slow
@pytest.mark.usefixtures("written")
def test_pictures_stay_at_home_when_asked_and_are_drawn_where_there_are_none(fitted: Path, tmp_path: Path) -> None:
    proof = export_run(fitted, tmp_path / "bundle", "onnx", pictures=False)
    assert "drawn" in proof.good_parts and proof.verdict_flips == 0
    names = {file.name for file in (tmp_path / "bundle").rglob("*")}
    assert not names & {"pictures", "maps.npz", "examples.png"}
    with pytest.raises(BundleError, match="none travel with this bundle; name a folder"):
        verify(tmp_path / "bundle")


@pytest.mark.usefixtures("written")
def test_good_parts_are_altered_where_no_defects_are_known(fitted: Path, data: Path, tmp_path: Path) -> None:
    plain = tmp_path / "data"
    shutil.copytree(data / "plate" / "train", plain / "plate" / "train")
    proof = export_run(fitted, tmp_path / "bundle", "onnx", data=plain)
    assert "pasting a patch" in proof.defective_parts
    altered = [one for one in proof.images if one.kind == "defective"]
    assert len(altered) == 6
    for one in altered:
        whole = read_image(plain / one.image.removeprefix("altered/"))
        if (there := tmp_path / "bundle" / "pictures" / one.image).is_file():
            assert 0 < (read_image(there) != whole).mean() < 0.05


@pytest.mark.usefixtures("written")
def test_another_data_root_than_the_fits_is_refused(fitted: Path, tmp_path: Path) -> None:
    save(tmp_path / "data" / "plate" / "train" / "good" / "another.png", plate(0))
    with pytest.raises(DataError, match=r"kept aside in .*, found no plate/train/good/\d+.png and 5 more"):
        export_run(fitted, tmp_path / "bundle", "onnx", data=tmp_path / "data")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["bf16", "int8", "float8"])
def test_precisions_that_are_not_offered_are_refused_by_name(precision: str, fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"expected precision float32, found '{precision}'"):
        export_run(fitted, tmp_path / "bundle", "onnx", precision=precision)


def test_an_unfinished_run_and_a_folder_in_use_are_refused(fitted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"finished": False}))
    with pytest.raises(RunError, match="is not finished"):
        export_run(run, tmp_path / "bundle", "onnx")
    with pytest.raises(BundleError, match="expected a new or an empty folder for the bundle"):
        export_run(fitted, run, "onnx")


def test_a_method_that_cannot_be_captured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["padim"]
    detector = method(method.Config.tiny())
    monkeypatch.setattr(method, "forward", lambda self, image: image if image.mean() > 0 else -image)
    with pytest.raises(BundleError, match="PaDiM cannot be captured as one graph: "):
        capture(detector)


def test_the_commands_print_the_proof(fitted: Path, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    arguments = ["export", str(fitted), "--format", "openvino", "--data", str(data), "--out", str(bundle)]
    exported = CliRunner().invoke(app, arguments)
    assert exported.exit_code == 0, exported.output
    assert "verdicts that differ          0\n" in exported.output
    verified = CliRunner().invoke(app, ["verify", str(bundle)])
    assert verified.exit_code == 0 and "on all 6 pictures" in verified.output
