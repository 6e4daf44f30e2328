"""Run folders: written whole, moved as one piece, loaded with nothing but themselves, refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import threecad
from threecad.checkpoint import backbone_file, load_detector, own_tensors, save_detector
from threecad.detector import Detector
from threecad.errors import RunError
from threecad.files import file_sha256, read_tensors, write_tensors
from threecad.methods import METHODS
from threecad.runs import RunFolder, RunRecord
from threecad.settings import Settings
from threecad.settings_layers import validate

TINY = {"image_size": 64, "features": 12}


def settings_for(**method: object) -> Settings:
    return validate({"method": {**TINY, **method}}, METHODS["padim"].Config)


def saved(folder: Path, **method: object) -> tuple[Detector, RunFolder]:
    """A run folder of a detector whose numbers are made up."""
    settings = settings_for(**(method or {"backbone": "resnet10t.c3_in1k", "weights": "random"}))
    torch.manual_seed(0)
    detector = METHODS["padim"](settings.method).eval()
    with torch.no_grad():
        for name in own_tensors(detector):
            tensor = detector.state_dict()[name]
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    file = backbone_file(detector)
    record = RunRecord(
        method="padim",
        categories=["plate"],
        settings=settings.as_tables(),
        seed=0,
        preset="paper",
        precision="float32",
        threads=1,
        devices=1,
        hardware="a processor",
        steps=1,
        backbone=settings.method.backbone,
        weights_sha256=file_sha256(file) if file else None,
        texture_source=None,
        data_fingerprint="0",
    )
    run = RunFolder(folder)
    run.create(record, settings)
    save_detector(run, detector, record)
    return detector, run


def load(run: Path) -> Detector:
    return load_detector(RunFolder(run))[0]


def scores(detector: Detector) -> torch.Tensor:
    with torch.no_grad():
        return detector(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))).anomaly_map


def refusal(run: Path) -> str:
    with pytest.raises(RunError) as refused:
        load(run)
    assert len(str(refused.value).splitlines()) <= 3
    return str(refused.value)


def test_a_loaded_detector_is_the_saved_one_in_eval_mode(tmp_path: Path) -> None:
    detector, run = saved(tmp_path / "run")
    loaded = load(run.path)
    mine, theirs = loaded.state_dict(), detector.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(scores(loaded), scores(detector))
    assert not loaded.training


def test_a_run_moves_as_one_piece_and_loads_without_cache_or_package(
    tmp_path: Path, embedded: str, cache: Path
) -> None:
    detector, run = saved(tmp_path / "run", backbone="embedded")
    moved = Path(shutil.move(run.path, tmp_path / "elsewhere"))
    shutil.rmtree(cache)
    assert torch.equal(scores(load(moved)), scores(detector))
    assert not cache.exists(), "loading a run looked into the cache"


def test_what_the_backbones_file_holds_is_not_written_twice(tmp_path: Path, embedded: str) -> None:
    detector, run = saved(tmp_path / "run", backbone="embedded")
    own = load_file(run.detector_file)
    assert own.keys() == own_tensors(detector).keys()
    assert not any(name.startswith("pyramid.network") for name in own)
    assert own
    assert file_sha256(run.backbone_file) == run.read_record().weights_sha256


def test_the_backbone_is_a_hard_link_so_that_a_hundred_runs_hold_it_once(tmp_path: Path, embedded: str) -> None:
    detector, run = saved(tmp_path / "run", backbone="embedded")
    assert run.backbone_file.samefile(backbone_file(detector))


def test_a_random_backbone_is_part_of_the_detectors_file(tmp_path: Path) -> None:
    _, run = saved(tmp_path / "run")
    assert any(name.startswith("pyramid.network") for name in load_file(run.detector_file))
    assert not run.backbone_file.exists()


def test_nothing_in_a_run_is_a_pickle_and_nothing_is_left_over(tmp_path: Path) -> None:
    _, run = saved(tmp_path / "run")
    assert {file.name for file in run.path.iterdir()} == {
        *("run.json", "settings.toml", "detector.safetensors", "good.json", "verdict.toml")
    }


def test_tensors_in_channels_last_are_saved_and_the_order_in_memory_of_the_loader_stays(tmp_path: Path) -> None:
    tensor = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "file.safetensors", {"t": tensor.contiguous()})
    assert torch.equal(read_tensors(tmp_path / "file.safetensors")[0]["t"], tensor)
    layer.load_state_dict({name: value.contiguous() for name, value in layer.state_dict().items()})
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_no_run_at_all(tmp_path: Path) -> None:
    expected = f"expected a run folder with run.json at {tmp_path}, found none; `threecad fit` makes one"
    assert refusal(tmp_path) == expected


def test_a_run_json_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "another tool"}')
    assert "expected a run of ThreeCAD, found something else" in refusal(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "run.json is not readable" in refusal(tmp_path)


def edit(run: RunFolder, **changes: object) -> None:
    content = json.loads(run.record_file.read_text()) | changes
    run.record_file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 4, "version": "9.0"},
            "by ThreeCAD 9.0: expected run format 3, found 4; update this one",
        ),
        ({"format": 1, "version": "0.0"}, "expected run format 3, found 1; fit it again"),
        ({"finished": False}, "is not finished; go on with `threecad fit … --out"),
        ({"method": "yolo"}, "is a run of the method 'yolo', which this version does not have"),
        ({"colour": "blue"}, "is damaged: colour: Extra inputs are not permitted"),
        ({"seed": ...}, "is damaged: seed: Field required"),
        ({"duration_s": "long"}, "is damaged: duration_s: Input should be a valid number"),
        ({"settings": {"method": {"feature": 12}}}, "does not fit this version: unknown setting 'method.feature'"),
        ({"settings": {"method": {"image_size": 64, "features": 13, "weights": "random"}}}, "does not fit the method"),
    ],
)
def test_a_run_of_something_else_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _, run = saved(tmp_path / "run")
    edit(run, **changes)
    assert message in refusal(run.path)


def test_a_damaged_or_missing_file_of_tensors_is_refused(tmp_path: Path, embedded: str) -> None:
    _, run = saved(tmp_path / "run", backbone="embedded")
    whole = run.backbone_file.read_bytes()
    run.backbone_file.unlink()
    run.backbone_file.write_bytes(whole[:-1] + b"x")
    assert "backbone.safetensors is missing or damaged: it is not the file that run.json names" in refusal(run.path)
    with run.detector_file.open("r+b") as file:
        file.truncate(1000)
    assert "detector.safetensors is missing or damaged" in refusal(run.path)
    run.detector_file.unlink()
    assert "detector.safetensors is missing or damaged" in refusal(run.path)


def test_a_folder_in_use_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").refuse_unless_free()
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").refuse_unless_free()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with pytest.raises(RunError, match=r"expected a new or an empty folder .*used with files already,\nor choose"):
        RunFolder(tmp_path / "used").refuse_unless_free()
    _, run = saved(tmp_path / "run")
    edit(run, finished=False)
    with pytest.raises(RunError, match="an unfinished run; go on with --resume"):
        run.refuse_unless_free()
    with pytest.raises(RunError, match="found the file"):
        RunFolder(tmp_path / "used" / "notes.txt").refuse_unless_free()


def test_what_a_killed_save_left_goes_with_the_next_one_and_other_hidden_files_stay(tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"method": {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 4}}
    (run / ".threecad-half").mkdir(parents=True)
    (run / ".threecad-half" / "state.safetensors").write_bytes(b"half")
    threecad.fit("padim", tree, run, settings=settings)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_a_folder_with_files_and_no_record_is_nothing_to_resume(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp_notes").write_text("mine")
    with pytest.raises(RunError, match="expected a new or an empty folder"):
        threecad.fit("padim", tree, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / ".tmp_notes").read_text() == "mine"


def test_numbers_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    detector, run = saved(tmp_path / "run")
    before = run.detector_file.read_bytes()
    with torch.no_grad():
        next(iter(own_tensors(detector)))
        detector.state_dict()["gaussians.mean"][0, 0] = torch.nan
    with pytest.raises(RunError, match=r"a value in gaussians\.mean that is not finite"):
        save_detector(run, detector, run.read_record())
    assert run.detector_file.read_bytes() == before


def test_somebody_elses_run_chooses_no_file_of_this_machine(tmp_path: Path) -> None:
    _, run = saved(tmp_path / "run")
    tables = run.read_record().settings
    tables["method"]["weights"] = str(tmp_path / "theirs.pth")
    (tmp_path / "theirs.pth").write_bytes(b"a pickle, perhaps")
    edit(run, settings=tables)
    load(run.path)
