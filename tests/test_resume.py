"""A fit that was killed, interrupted or refused: what is in the run folder, and that going on gives the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import threecad
from threecad.errors import RunError
from threecad.files import read_tensors, write_tensors
from threecad.runs import RunFolder
from threecad.stopping import Interrupted
from threecad.training import StepReport

SETTINGS = {
    "method": {
        "backbone": "resnet10t.c3_in1k",
        "student": "test_efficientnet.r160_in1k",
        "weights": "random",
        "image_size": 64,
        "width": 16,
    },
    "training": {"steps": 40, "batch": 2, "precision": "float32", "checkpoint_s": 0.01},
    "data": {"holdout": 0.25, "textures": "procedural"},
}
"""DeSTSeg: two gradient phases, each with an optimiser that remembers."""


def settings(**training: object) -> dict[str, dict[str, object]]:
    return {**SETTINGS, "training": {**SETTINGS["training"], **training}}


def go_on(root: Path, run: Path) -> None:
    """In a process of its own: fit, or go on with what is there."""
    torch.set_num_threads(1)
    threecad.fit("destseg", root, run, settings=SETTINGS, resume=True)


def assert_same_run(run: Path, reference: Path) -> None:
    names = {path.name for path in run.iterdir()}
    written = {"detector.safetensors", "metrics.csv", "settings.toml", "good.json", "verdict.toml"}
    assert names == written | {"run.json"}
    for name in sorted(written):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), f"{name} differs"
    assert len(RunFolder(run).read_verdicts().good.of("plate")) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_twenty_moments_and_resumed_the_run_is_the_same_bit_for_bit(tree: Path, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")  # torch is loaded once, every process is forked from there
    processes.set_forkserver_preload(["threecad.fitting", "threecad.methods.destseg", "test_resume"])
    reference, run, moments = tmp_path / "reference", tmp_path / "run", random.Random(0)

    def start(folder: Path) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=go_on, args=(tree, folder))
        process.start()
        return process

    warm_up = start(tmp_path / "warm")
    warm_up.join()
    begin = time.monotonic()
    whole = start(reference)
    whole.join()
    duration_s = time.monotonic() - begin
    assert (warm_up.exitcode, whole.exitcode) == (0, 0)
    assert_same_run(tmp_path / "warm", reference)

    kills = 0
    while kills < 20:
        process = start(run)
        process.join(moments.uniform(0, duration_s))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            assert_same_run(run, reference)
            shutil.rmtree(run)
    last = start(run)
    last.join()
    assert last.exitcode == 0
    assert_same_run(run, reference)


def stop_at(phase: str, step: int):
    def watch(report: StepReport) -> None:
        if (report.phase, report.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    return watch


@pytest.fixture
def interrupted(tree: Path, tmp_path: Path) -> Path:
    """The run folder of a fit of five steps that was interrupted after the first."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        threecad.fit("destseg", tree, run, settings=settings(steps=5), callback=stop_at("student", 1))
    return run


def refusal(tree: Path, run: Path, method: str = "destseg", **options: object) -> str:
    with pytest.raises(RunError) as refused:
        threecad.fit(method, tree, run, resume=True, **({"settings": settings(steps=5)} | options))
    assert len(str(refused.value).splitlines()) <= 3
    return str(refused.value)


def test_ctrl_c_saves_the_state_and_resuming_ends_with_the_same_bits(tree: Path, tmp_path: Path) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    threecad.fit("destseg", tree, reference, settings=settings(steps=5))
    with pytest.raises(Interrupted):
        threecad.fit("destseg", tree, run, settings=settings(steps=5), callback=stop_at("segmenter", 2))
    folder = RunFolder(run)
    assert folder.state_file.is_file() and not folder.read_record().finished
    with pytest.raises(RunError, match="is not finished; go on with `threecad fit"):
        threecad.load(run)
    reports: list[StepReport] = []
    threecad.fit("destseg", tree, run, settings=settings(steps=5), resume=True, callback=reports.append)
    assert (reports[0].phase, reports[0].step) == ("segmenter", 3)
    assert_same_run(run, reference)


def test_signals_are_handled_as_before_once_the_fit_is_over(tree: Path, tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(Interrupted):
        threecad.fit("destseg", tree, tmp_path / "run", settings=settings(steps=5), callback=stop_at("student", 1))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_second_fit_into_the_same_folder_says_that_resuming_is_possible(tree: Path, interrupted: Path) -> None:
    before = {path: path.read_bytes() for path in interrupted.iterdir()}
    with pytest.raises(RunError, match="an unfinished run; go on with --resume"):
        threecad.fit("destseg", tree, interrupted, settings=settings(steps=5))
    assert {path: path.read_bytes() for path in interrupted.iterdir()} == before


def test_resuming_with_other_settings_is_refused_and_names_them(tree: Path, interrupted: Path) -> None:
    assert "training.steps = 5, requested is 6" in refusal(tree, interrupted, settings=settings(steps=6))
    assert "training.seed = 0, requested is 1" in refusal(tree, interrupted, settings=settings(steps=5, seed=1))
    other = settings(steps=5) | {"method": {**SETTINGS["method"], "width": 8}}
    assert "method.width = 16, requested is 8" in refusal(tree, interrupted, settings=other, inexact=True)
    assert "is a fit of 'destseg', requested was 'padim'" in refusal(tree, interrupted, method="padim", settings={})


def test_how_often_states_are_saved_may_change(tree: Path, interrupted: Path) -> None:
    threecad.fit("destseg", tree, interrupted, settings=settings(steps=5, checkpoint_s=1000), resume=True)
    assert RunFolder(interrupted).read_record().finished


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("precision", "bf16"),
        ("threads", 99),
        ("version", "0.0.1"),
        ("texture_source", "folder:dtd#1"),
        ("devices", 2),
        ("hardware", "another"),
    ],
)
def test_resuming_where_it_cannot_be_exact_is_refused_and_names_why(
    tree: Path, interrupted: Path, fact: str, value: object
) -> None:
    file = RunFolder(interrupted).record_file
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {fact: value}))
    message = refusal(tree, interrupted)
    assert f"{fact} was {value}, is {record[fact]}" in message
    assert "--inexact" in message


def test_a_fit_goes_on_in_its_number_of_threads_where_the_load_alone_chose_another(
    tree: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = RunFolder(interrupted), torch.get_num_threads()
    run.record_file.write_text(json.dumps(json.loads(run.record_file.read_text()) | {"threads": now + 1}))
    monkeypatch.setattr("threecad.fitting.gave_way", lambda: True)
    try:
        threecad.fit("destseg", tree, interrupted, settings=settings(steps=5), resume=True)
    finally:
        torch.set_num_threads(now)
    record = run.read_record()
    assert (record.finished, record.threads, record.resumed_inexactly) == (True, now + 1, [])


def test_an_inexact_resume_is_possible_where_it_is_asked_for_and_says_so(tree: Path, interrupted: Path) -> None:
    (tree / "plate" / "train" / "good" / "000.png").unlink()
    assert "data_fingerprint was" in refusal(tree, interrupted)
    said: list[str] = []
    threecad.fit(
        "destseg", tree, interrupted, settings=settings(steps=5), resume=True, inexact=True, notify=said.append
    )
    assert said[0].startswith("resuming inexactly: data_fingerprint was")
    record = RunFolder(interrupted).read_record()
    assert record.finished and record.resumed_inexactly == ["data_fingerprint"]


def test_resuming_a_finished_run_gives_its_detector_and_changes_nothing(tree: Path, interrupted: Path) -> None:
    detector = threecad.fit("destseg", tree, interrupted, settings=settings(steps=5), resume=True)
    before = {path: path.stat().st_mtime_ns for path in interrupted.iterdir()}
    said: list[str] = []
    again = threecad.fit("destseg", tree, interrupted, settings=settings(steps=5), resume=True, notify=said.append)
    assert said == [f"{interrupted} is finished already"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in detector.state_dict().items())
    assert {path: path.stat().st_mtime_ns for path in interrupted.iterdir()} == before


def test_a_state_of_another_network_is_refused(tree: Path, interrupted: Path) -> None:
    state = interrupted / "state.safetensors"
    tensors, about = read_tensors(state)
    write_tensors(state, {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}, about)
    assert "state.safetensors does not fit the method: expected" in refusal(tree, interrupted)
    write_tensors(state, tensors)
    assert "state.safetensors is no saved state of a fit" in refusal(tree, interrupted)
