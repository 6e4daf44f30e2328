"""A bundle at work: the run's answers without torch, one line for whatever is wrong, and nothing sent to anybody."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import threecad
from conftest import need_backends, plate, save
from threecad import runtime
from threecad.cli import app
from threecad.deciding import change_verdict
from threecad.errors import BundleError, DataError, RunError, SettingsError
from threecad.prediction import predict_files
from threecad.runtime.networks import unit_range
from threecad.runtime.verification import verify
from threecad.tensors import to_tensor

ROOT = Path(__file__).parents[1]
BACKENDS = ("onnx", "openvino")


def python(*arguments: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; isolated, it sees neither site-packages nor the variables of this one."""
    flags = ["-I", "-S"] if isolated else []
    return subprocess.run([sys.executable, *flags, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def copied(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the ONNX bundle to damage."""
    return Path(shutil.copytree(bundles["onnx"], tmp_path / "bundle"))


@pytest.fixture(scope="session")
def line_pc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with what `pip install threecad[onnx]` brings, and nothing else."""
    need_backends()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["onnx"]]
    site = tmp_path_factory.mktemp("line") / "site-packages"
    site.mkdir()
    (site / "threecad").symlink_to(ROOT / "src" / "threecad")
    done: set[str] = set()
    while wanted:
        name = wanted.pop().name
        if name.lower() in done:
            continue
        done.add(name.lower())
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if not file.parts[0].startswith("..")}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
        further = map(Requirement, distribution.requires or [])
        wanted += [one for one in further if one.marker is None or one.marker.evaluate({"extra": ""})]
    return site


def on_line_pc(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A `threecad` command in that environment."""
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv = {['threecad', *arguments]!r}\n"
        "from threecad.cli import main; main()"
    )
    return python("-c", code, isolated=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_answers_as_its_run_does(backend: str, bundles: dict[str, Path], fitted: Path) -> None:
    pictures = [np.tile(plate(number), (1, 1 + number, 1)) for number in range(3)]
    expected, found = threecad.load(fitted)(pictures), threecad.load(bundles[backend])(pictures)
    for one, other in zip(expected, found, strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-4)
        assert (other.verdict, other.good_share) == (one.verdict, one.good_share)
        assert [region.box for region in other.regions] == [region.box for region in one.regions]
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_share_a_bundle(backend: str, bundles: dict[str, Path]) -> None:
    predictor = runtime.load(bundles[backend])
    pictures = [plate(number) for number in range(12)]
    alone = [predictor(picture).score for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: predictor(picture).score, pictures))
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_the_runtime_comes_without_anything_that_is_for_training_or_slow_to_load() -> None:
    heavy = ("torch", "timm", "lightning_fabric", "scipy", "onnxruntime", "openvino", "tomli_w", "safetensors")
    code = f"import threecad.runtime, sys; print(*(name for name in {heavy!r} if name in sys.modules))"
    result = python("-c", code)
    assert result.stdout.split() == [], result.stderr


@pytest.mark.slow
def test_the_line_pc_needs_no_torch_to_predict_and_to_verify(
    line_pc: Path, bundles: dict[str, Path], fitted: Path, tmp_path: Path
) -> None:
    assert not (line_pc / "torch").exists() and (line_pc / "onnxruntime").exists()
    part = save(tmp_path / "part.png", plate(307))  # not one of the good parts, whose share is a tie with itself
    result = on_line_pc(line_pc, "predict", str(bundles["onnx"]), str(part), "--out", str(tmp_path / "line"))
    assert result.returncode == 0, result.stderr
    predict_files(fitted, [part], tmp_path / "run")
    (line,), (run,) = (list(csv.DictReader((tmp_path / name / "predictions.csv").open())) for name in ("line", "run"))
    assert float(line["score"]) == pytest.approx(float(run["score"]), rel=1e-4)
    assert {key: line[key] for key in line if key != "score"} == {key: run[key] for key in run if key != "score"}
    lines, runs = ((tmp_path / name / "regions.jsonl").read_text() for name in ("line", "run"))
    boxes = [[region["box"] for region in json.loads(text)["regions"]] for text in (lines, runs)]
    assert boxes[0] == boxes[1]
    assert (tmp_path / "line" / line["map"]).is_file() and (tmp_path / "line" / line["overlay"]).is_file()
    verified = on_line_pc(line_pc, "verify", str(bundles["onnx"]))
    assert verified.returncode == 0, verified.stderr
    assert re.search(r"verdicts that differ +0\n", verified.stdout)


@pytest.mark.slow
def test_the_line_pc_names_what_it_lacks_in_one_line(line_pc: Path, bundles: dict[str, Path], fitted: Path) -> None:
    trained = on_line_pc(line_pc, "predict", str(fitted), str(fitted.parent), "--out", "nowhere")
    absent = on_line_pc(line_pc, "predict", str(fitted / "absent"), str(fitted.parent), "--out", "nowhere")
    backend = on_line_pc(line_pc, "verify", str(bundles["openvino"]))
    assert (trained.returncode, absent.returncode, backend.returncode) == (2, 2, 2)
    assert re.fullmatch(r"threecad: expected a run folder .*, or a bundle .*, found neither; .*\n", absent.stderr)
    assert re.fullmatch(r"threecad: this needs \w+; .* pip install 'threecad\[train\]'\n", trained.stderr)
    assert re.fullmatch(r"threecad: this needs openvino, .* pip install 'threecad\[openvino\]'\n", backend.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_sent_anywhere(backend: str, bundles: dict[str, Path]) -> None:
    code = f"""
import sys
calls = []
watched = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork", "os.posix_spawn")
sys.addaudithook(lambda event, arguments: calls.append(event) if event in watched else None)
import numpy, threecad.runtime
threecad.runtime.load({str(bundles[backend])!r})(numpy.zeros((64, 64, 3), numpy.uint8))
print(*calls, *(name for name in sys.modules if name.startswith("openvino_telemetry.")))
"""
    result = python("-c", code)
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


def test_pixels_reach_both_networks_bit_for_bit_alike() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(unit_range(levels, (16, 16)), to_tensor(levels).numpy())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "pixels", [np.zeros((1, 32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3))]
)
def test_a_network_refuses_pixels_of_another_shape_or_type(
    backend: str, pixels: np.ndarray, bundles: dict[str, Path]
) -> None:
    with pytest.raises(DataError, match=r"expected pixels \(B, 64, 64, 3\) of uint8, found"):
        runtime.load(bundles[backend]).network(pixels)


def test_a_changed_byte_of_any_file_is_found(copied: Path) -> None:
    for file in sorted(
        path for path in copied.rglob("*") if path.is_file() and path.name not in ("bundle.json", "verdict.toml")
    ):
        before = file.read_bytes()
        changed = bytearray(before)
        changed[len(before) // 2] ^= 1
        file.write_bytes(changed)
        with pytest.raises(BundleError, match=rf"{file.name} is not the file that was exported"):
            runtime.load(copied)
        file.write_bytes(before)
    runtime.load(copied)


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A change of `bundle.json`."""

    def apply(bundle: Path) -> None:
        content = json.loads((bundle / "bundle.json").read_text())
        change(content)
        (bundle / "bundle.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: (bundle / "detector.onnx").unlink(), "the bundle is incomplete: .*detector.onnx"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "expected a bundle with bundle.json"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "bundle.json is not readable"),
        (edit(lambda content: content["map_units"].update(tile=[0.0, 1.0])), "was changed after the export"),
        (edit(lambda content: content.update(format=99)), "expected bundle format 2, found 99; update this one"),
        (edit(lambda content: content.update(format=1)), "expected bundle format 2, found 1; export it again"),
        (edit(lambda content: content.clear()), "expected a bundle of ThreeCAD, found something else"),
        (edit(lambda content: content.update(backend="tensorrt")), "bundle.json is damaged: backend"),
    ],
)
def test_a_damaged_bundle_is_refused_with_one_line(
    damage: Callable[[Path], object], message: str, copied: Path
) -> None:
    damage(copied)
    with pytest.raises(BundleError, match=message) as raised:
        runtime.load(copied)
    assert "\n" not in str(raised.value)


def test_other_devices_and_precisions_than_it_has_are_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match="runs on the cpu, found --device cuda"):
        threecad.load(bundles["onnx"], device="cuda")
    with pytest.raises(SettingsError, match=r"finds on this machine \(.*cpu.*\), found 'abacus'"):
        threecad.load(bundles["openvino"], device="abacus")
    with pytest.raises(SettingsError, match="proved in float32, found --precision bf16"):
        threecad.load(bundles["onnx"], precision="bf16")


def test_openvino_computes_in_float32_whatever_the_processor_prefers(bundles: dict[str, Path]) -> None:
    predictor = runtime.load(bundles["openvino"])
    hint = predictor.network.model.get_property("INFERENCE_PRECISION_HINT")  # type: ignore[attr-defined]
    assert hint.to_string() == "f32"
    recorded = runtime.Bundle(bundles["openvino"]).read_record().settings
    assert recorded["INFERENCE_PRECISION_HINT"] == "f32"


def test_calibrate_works_on_runs_and_says_so_of_a_bundle(bundles: dict[str, Path]) -> None:
    bundle = bundles["onnx"]
    answer = CliRunner().invoke(app, ["calibrate", str(bundle), "parts"])
    assert isinstance(answer.exception, RunError)
    said = f"expected a run, found the bundle {bundle}: only predict, verdict, verify and serve take one; "
    assert str(answer.exception) == said + "change the run and export it again"


def test_budgets_of_a_bundle_can_be_changed_and_its_verdicts_follow(copied: Path) -> None:
    picture, before = plate(3), runtime.load(copied)
    answer = CliRunner().invoke(app, ["verdict", str(copied), "--reject-at", "0.6", "--review-at", "0.8"])
    assert answer.exit_code == 0, answer.output
    after = runtime.load(copied)
    assert (after.verdicts.settings.reject_at, after.verdicts.settings.review_at) == (0.6, 0.8)
    assert after.verdicts.limits().reject.threshold < before.verdicts.limits().reject.threshold
    assert after(picture).score == before(picture).score
    assert after.verdicts.good == before.verdicts.good


def test_verify_says_which_budgets_were_changed_since_the_proof(copied: Path) -> None:
    unchanged = verify(copied)
    change_verdict(copied, reject_at=0.6, review_at=0.8, rule="average")
    changed = verify(copied)
    assert "changed" not in unchanged.thresholds_from
    assert "budgets were changed since the proof: review_at was 0.05, is 0.8" in changed.thresholds_from
    assert changed.thresholds["plate"]["NG"] == runtime.load(copied).verdicts.limits().reject.threshold
    assert changed.thresholds["plate"]["NG"] < unchanged.thresholds["plate"]["NG"]


def test_budgets_of_a_damaged_bundle_are_not_changed(copied: Path) -> None:
    before = (copied / "verdict.toml").read_text()
    (copied / "good.json").write_text((copied / "good.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"good.json is not the file that was exported"):
        change_verdict(copied, reject_at=0.02)
    assert (copied / "verdict.toml").read_text() == before
