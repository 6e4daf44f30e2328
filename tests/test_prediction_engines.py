"""An archive on several workers: the rows, maps and order of one process, whatever becomes of a worker."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import archive
from conftest import plate, save
from threecad import prediction
from threecad.engines import Ended, Engine
from threecad.errors import RunError
from threecad.inputs import Input, gather
from threecad.prediction import Request, judge_shard, predict_files
from threecad.prediction_table import PredictionTable


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def same_predictions(here: Path, there: Path) -> None:
    """Both folders say the same, in the same order; scores and maps may differ by the arithmetic of threads."""
    one, other = rows_of(here), rows_of(there)
    assert [row | {"score": ""} for row in other] == [row | {"score": ""} for row in one]
    assert [float(row["score"] or 0) for row in other] == pytest.approx([float(r["score"] or 0) for r in one], rel=1e-4)
    regions = [(out / "regions.jsonl").read_text().splitlines() for out in (here, there)]
    assert [line.split(",")[0] for line in regions[1]] == [line.split(",")[0] for line in regions[0]]
    for row in one:
        if row["map"]:
            with Image.open(here / row["map"]) as a, Image.open(there / row["map"]) as b:
                np.testing.assert_allclose(np.array(b), np.array(a), rtol=1e-3, atol=1e-4)
            assert (there / row["overlay"]).is_file()


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of 40 small images, one of which is cut and one no picture."""
    folder = tmp_path / "parts"
    for number in range(40):
        save(folder / f"{number // 10}" / f"{number:02}.png", plate(number))
    (folder / "1" / "13.png").write_bytes((folder / "1" / "13.png").read_bytes()[:200])
    (folder / "3" / "37.png").write_text("not a picture")
    return folder


def kill_one(engine: Engine) -> None:
    """End one of the two workers of a prediction that is under way in this process."""
    if engine.kind == "ray":
        archive.kill_a_worker()
    else:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are found in /proc")
def test_with_a_worker_killed_midway_every_image_has_one_row_and_the_table_is_that_of_one_process(
    parts: Path, tmp_path: Path, fitted: Path, engine: Engine
) -> None:
    for number in range(40, 200):
        save(parts / "many" / f"{number}.png", plate(number))
    killed: list[int] = []

    def kill_midway(done: int, total: int) -> None:
        if done >= total // 3 and not killed:
            kill_one(engine)
            killed.append(done)

    predict_files(fitted, [parts], tmp_path / "here", batch=4)
    summary = predict_files(fitted, [parts], tmp_path / "there", batch=4, engine=engine, progress=kill_midway)
    assert killed and summary.count == 200 and len(summary.errors) == 2
    same_predictions(tmp_path / "here", tmp_path / "there")
    assert not list((tmp_path / "there").rglob(".threecad-*"))


@pytest.mark.slow
@pytest.mark.enable_socket
def test_interrupted_on_an_engine_it_goes_on_in_one_process_with_whole_rows(
    parts: Path, tmp_path: Path, fitted: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as a user types it; a cluster was started elsewhere

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(fitted, [Path("parts")], Path("there"), batch=1, engine=engine, progress=stop)
    kept = rows_of(tmp_path / "there")
    assert len(kept) == 11 and all(row["verdict"] or row["error"] for row in kept)
    predict_files(fitted, [Path("parts")], Path("there"), batch=1, resume=True)
    predict_files(fitted, [Path("parts")], Path("here"), batch=1)
    same_predictions(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
def test_a_bundle_is_looked_through_by_several_workers_as_a_run_is(
    parts: Path, tmp_path: Path, bundles: dict[str, Path]
) -> None:
    predict_files(bundles["onnx"], [parts], tmp_path / "here", batch=2)
    predict_files(bundles["onnx"], [parts], tmp_path / "there", batch=2, engine=Engine(workers=2))
    same_predictions(tmp_path / "here", tmp_path / "there")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process, whose workers die of the image 22 and end in another order than they began."""

    def map_tasks(
        function: Callable[[Any], Any], items: Sequence[Sequence[Input]], engine: Engine, *, fresh: bool
    ) -> Iterator[Ended]:
        for index in reversed(range(len(items))):
            if any(image.place.endswith("22") for image in items[index]):
                yield Ended(index, None, "its process was ended by SIGSEGV", died=True)
            else:
                yield Ended(index, function(items[index]), None)

    monkeypatch.setattr(prediction, "map_tasks", map_tasks)


def test_an_image_that_processes_die_of_is_one_broken_image_and_the_rows_are_in_order(
    parts: Path, tmp_path: Path, fitted: Path, dying: None
) -> None:
    summary = predict_files(fitted, [parts], tmp_path / "out", batch=1, engine=Engine(workers=2))
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == [str(image.path) for image in gather([parts], tmp_path / "out")]
    (row,) = [row for row in rows if row["image"].endswith("22.png")]
    assert "SIGSEGV" in row["error"] and "not inspected" in row["error"] and row["verdict"] == ""
    assert len(summary.errors) == 3  # that one, and the two that cannot be read


def test_rows_of_images_tried_again_lie_where_they_belong(parts: Path, tmp_path: Path, fitted: Path) -> None:
    predict_files(fitted, [parts], tmp_path / "out")
    save(parts / "1" / "13.png", plate(13))
    assert len(predict_files(fitted, [parts], tmp_path / "out", resume=True).errors) == 1
    predict_files(fitted, [parts], tmp_path / "whole")
    same_predictions(tmp_path / "whole", tmp_path / "out")


def test_a_machine_that_sees_other_folders_or_another_run_looks_at_nothing(
    parts: Path, tmp_path: Path, fitted: Path
) -> None:
    asked = Request(fitted, tmp_path / "out")
    request, images = asked.settled(asked.open()), gather([parts / "0" / "01.png"], tmp_path / "out")
    with pytest.raises(RunError, match="same path on all of them"):
        judge_shard(request, images)
    with PredictionTable(tmp_path / "out", dict(request.about), resume=False):
        ((row, _),) = judge_shard(request, images)
        assert row.verdict
        other = replace(request, about=tuple((dict(request.about) | {"good_parts": 99}).items()))
        with pytest.raises(RunError, match="good_parts was 99, is 6"):
            judge_shard(other, images)


def test_a_cluster_that_cannot_be_reached_is_one_line_and_an_address_needs_ray(
    parts: Path, tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="the extra threecad[ray] is not installed")
    from threecad.cli import app

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked = ["predict", str(fitted), str(parts), "--out", str(tmp_path / "out"), "--address", "127.0.0.1:9"]
    for more, expected in (["--engine", "ray"], "expected a Ray cluster at 127.0.0.1:9"), ([], "add --engine ray"):
        error = CliRunner().invoke(app, [*asked, *more]).exception
        assert expected in str(error) and "\n" not in str(error)
