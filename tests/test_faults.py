"""A fit that fails must fail: what is not a number stops it, keeps the last good state, and never becomes a run."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import threecad
from threecad.errors import RunError
from threecad.files import read_tensors
from threecad.prediction import predict_files
from threecad.runs import RunFolder
from threecad.tensors import own_randomness, seed_everything
from threecad.training import StepReport

TINY = {
    "method": {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64},
    "training": {"batch": 4, "steps": 12, "checkpoint_s": 1e-6, "precision": "float32"},
}


def with_(**method: object) -> dict[str, dict[str, object]]:
    return {**TINY, "method": {**TINY["method"], **method}}


def test_a_loss_that_is_not_finite_stops_the_fit_and_names_phase_step_term_and_rate(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as diverged:
        threecad.fit("rd", tree, tmp_path / "run", settings=with_(learning_rate=1e30))
    message = str(diverged.value)
    for part in ("the fit has diverged: phase '", "step ", "rate 1e+30", "loss term '", "smaller method.learning_rate"):
        assert part in message
    assert not RunFolder(tmp_path / "run").read_record().finished
    with pytest.raises(RunError, match="is not finished"):
        threecad.load(tmp_path / "run")


def test_the_state_that_a_diverged_fit_leaves_is_the_last_good_one(tree: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RunError):
        threecad.fit("rd", tree, run.path, settings=with_(learning_rate=1e30))
    if run.state_file.exists():
        tensors, _ = read_tensors(run.state_file)
        assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_gradients_that_are_not_finite_are_our_error_in_a_method_that_clips_them(tree: Path, tmp_path: Path) -> None:
    settings = {"training": TINY["training"], "method": {**threecad.METHODS["uniad"].Config.tiny().model_dump()}}
    settings["method"] |= {"learning_rate": 1e30}
    with pytest.raises(RunError, match=r"the fit has diverged|not finite"):
        threecad.fit("uniad", tree, tmp_path / "run", settings=settings)


def test_a_fit_leaves_the_callers_random_numbers_as_they_were(tree: Path, tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    seed_everything((1,), torch.device("cpu"))
    expected = draw()
    seed_everything((1,), torch.device("cpu"))
    reports: list[StepReport] = []
    threecad.fit("padim", tree, tmp_path / "run", settings=with_(features=4), callback=reports.append)
    assert reports and draw() == expected
    with own_randomness():
        seed_everything((2,), torch.device("cpu"))
        other = draw()
    assert draw() != other


def test_running_out_of_memory_is_an_error_that_says_what_to_do(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("threecad.training.to_tensor", fail)
    with pytest.raises(RunError, match=r"not enough memory: .*\nTake a smaller method.image_size or training.batch"):
        threecad.fit("padim", tree, tmp_path / "run", settings=with_(features=4))


def test_other_faults_are_not_called_a_lack_of_memory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("threecad.training.to_tensor", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        threecad.fit("padim", tree, tmp_path / "run", settings=with_(features=4))


def test_a_file_name_that_is_no_utf_8_goes_from_fit_to_scores_and_predictions(tree: Path, tmp_path: Path) -> None:
    for folder in ("train/good", "test/good"):
        file = tree / "plate" / folder / "000.png"
        file.rename(file.with_name(os.fsdecode(b"teil_\xfc.png")))
    run, out = tmp_path / "run", tmp_path / "out"
    threecad.fit("padim", tree, run, settings=with_(features=4) | {"data": {"holdout": 0.8}})
    assert any("teil_" in name for name in RunFolder(run).read_record().holdout)
    threecad.evaluate(run, tree)
    assert predict_files(run, [tree / "plate" / "test" / "good"], out).errors == []
    assert b"teil_\xfc.png" in (out / "predictions.csv").read_bytes()
    assert predict_files(run, [tree / "plate" / "test" / "good"], out, resume=True).count == 4
