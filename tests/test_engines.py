"""One function over many items, in processes and on Ray: every item ends once, whatever becomes of its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import plant
from engine_tasks import PLAN, environment, fail, kill_oneself, kill_oneself_once, leave, square
from threecad.benchmark.plan import read_plan
from threecad.benchmark.run import run_plan
from threecad.engines import Engine, map_tasks
from threecad.errors import RunError, SettingsError
from threecad.threads import processors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tasks_can_be_imported")]

LOCAL = Engine(workers=2)


@pytest.mark.enable_socket
def test_every_item_ends_once_with_its_result(engine: Engine) -> None:
    ended = list(map_tasks(square, range(7), engine))
    assert sorted(one.index for one in ended) == list(range(7))
    assert all(one.result == one.index**2 and one.failure is None for one in ended)


def test_nothing_to_do_is_done_at_once() -> None:
    assert list(map_tasks(square, [], LOCAL)) == []


@pytest.mark.enable_socket
def test_what_raises_says_why_and_the_others_go_on(engine: Engine) -> None:
    ended = {one.index: one for one in map_tasks(fail, ["data", "fault", "fine"], engine)}
    assert ended[0].failure == "expected this, found that"  # an error that the user can mend, in its own words
    assert ended[1].failure == "KeyError: 'fault'" and not ended[1].died
    assert ended[2].result == "fine"


@pytest.mark.enable_socket
def test_an_item_whose_process_dies_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    ended = list(map_tasks(kill_oneself_once, [tmp_path / name for name in "abc"], engine))
    assert sorted(one.result for one in ended) == ["a", "b", "c"]


@pytest.mark.enable_socket
def test_an_item_whose_process_always_dies_ends_with_the_reason(engine: Engine) -> None:
    ended = {one.index: one for one in map_tasks(kill_oneself, [True, False], engine)}
    assert ended[0].died and "process" in (ended[0].failure or "")
    assert ended[1].result == "alive"


def test_workers_have_processors_and_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen = [one.result for one in map_tasks(environment, range(4), LOCAL)]
    assert {found["threads"] for found in seen} == {str(LOCAL.threads)}
    assert {found["gpu"] for found in seen} <= {"3", "5"}
    if hasattr(os, "sched_getaffinity"):
        assert all(len(found["processors"]) <= LOCAL.share for found in seen)


def test_fewer_threads_than_a_share_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Engine(workers=1).threads == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be kept to processors here")
def test_a_lone_worker_may_use_every_processor_so_that_two_commands_do_not_meet_on_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (ended,) = map_tasks(environment, [0], Engine())
    assert ended.result["processors"] == processors()


def test_a_cluster_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra threecad[ray] is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the cluster of the other tests stays
    with pytest.raises(RunError, match="ray start --head") as caught:
        list(map_tasks(square, [1], Engine("ray", address="127.0.0.1:9")))
    assert "\n" not in str(caught.value)


def test_an_address_for_this_machines_processes_is_refused() -> None:
    with pytest.raises(SettingsError, match="add --engine ray"):
        Engine(address="127.0.0.1:6379")


@pytest.mark.enable_socket
def test_relative_paths_mean_the_same_on_a_cluster_that_was_started_elsewhere(
    on_ray: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (ended,) = map_tasks(leave, [Path("trace")], on_ray)
    assert ended.failure is None and (tmp_path / "trace").exists()


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"threecad\[ray\]"):
        list(map_tasks(square, [1], Engine("ray")))


@pytest.mark.enable_socket
def test_a_grid_gives_the_same_rows_on_either_engine(on_ray: Engine, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("{data}", plant(tmp_path / "data").as_posix()), encoding="utf-8")
    plan = read_plan(tmp_path / "plan.toml")
    rows = []
    for engine, out in ((Engine(), tmp_path / "local"), (on_ray, tmp_path / "ray")):
        assert run_plan(plan, out, engine=engine).failed == {}
        rows.append([json.loads(file.read_text()) for file in sorted((out / "rows").rglob("*.json"))])
    for local, ray in zip(*rows, strict=True):
        assert local["benchmark"] == ray["benchmark"]
        assert local["p_auroc"] == pytest.approx(ray["p_auroc"], abs=1e-6)


def killed_and_run_again(command: list[str], delays: list[float]) -> None:
    """Run a benchmark again and again, each time killed after another delay, and at last to its end."""
    for delay in delays:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_table(tmp_path: Path, kind: str) -> None:
    if kind == "ray":
        pytest.importorskip("ray", reason="the extra threecad[ray] is not installed")
    (tmp_path / "plan.toml").write_text(PLAN.replace("{data}", plant(tmp_path / "data").as_posix()), encoding="utf-8")

    def command(out: Path) -> list[str]:
        command = [sys.executable, "-m", "threecad", "benchmark", str(tmp_path / "plan.toml")]
        return [*command, "--out", str(out), "--engine", kind]

    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    whole_s = time.monotonic() - start
    killed_and_run_again(command(tmp_path / "killed"), [share * whole_s for share in (0.5, 0.8)])
    one, other = ((tmp_path / out / "tables.csv").read_text(encoding="utf-8") for out in ("whole", "killed"))
    assert one == other


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_benchmark_saves_the_fit_that_it_is_at(tmp_path: Path) -> None:
    endless = PLAN.replace('"padim"', '"rd"').replace("features = 12", "") + "steps = 1000000\nbatch = 2\n"
    (tmp_path / "plan.toml").write_text(
        endless.replace("{data}", plant(tmp_path / "data").as_posix()), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "threecad",
        "benchmark",
        str(tmp_path / "plan.toml"),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "out").rglob("metrics.csv")) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert "go on with the same command" in said
    assert "Traceback" not in said
    assert process.returncode == 130
    assert any((tmp_path / "out").rglob("state.safetensors"))
