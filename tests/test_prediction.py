"""Maps, overlays and predictions.csv: at the images' own sizes, at their own places, whatever else is broken."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import plate, save
from threecad import prediction
from threecad.checkpoint import load_detector
from threecad.errors import DataError, FileError, RunError
from threecad.images import read_image, resize_map
from threecad.inference import load
from threecad.inputs import gather
from threecad.prediction import predict_files
from threecad.prediction_table import COLUMNS
from threecad.predictor import Predictor
from threecad.runs import RunFolder
from threecad.tensors import to_tensor
from threecad.verdicts import GoodScores, Verdicts


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of five images of different sizes, two of them in a folder below."""
    folder = tmp_path / "parts"
    for number, name in enumerate(("a.png", "b.png", "night/c.png", "night/deep/d.png")):
        save(folder / name, np.tile(plate(number), (1 + number, 2, 1)))
    save(folder / "grey.tif", plate(9)[..., 0])
    return folder


def test_maps_and_overlays_have_the_size_and_the_place_of_their_images(
    parts: Path, tmp_path: Path, fitted: Path
) -> None:
    out = tmp_path / "out"
    summary = predict_files(fitted, [parts], out)
    assert summary.count == 5 and summary.errors == []
    rows = rows_of(out / "predictions.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["image"] for row in rows] == [
        str(parts / name) for name in ("a.png", "b.png", "grey.tif", "night/c.png", "night/deep/d.png")
    ]
    assert (rows[4]["map"], rows[4]["overlay"]) == ("maps/night/deep/d.tiff", "overlays/night/deep/d.png")
    for row in rows:
        with Image.open(row["image"]) as image, Image.open(out / row["map"]) as found:
            assert (found.mode, found.size) == ("F", image.size)
        with Image.open(out / row["overlay"]) as shown, Image.open(row["image"]) as image:
            assert (shown.mode, shown.size) == ("RGB", image.size)


def test_score_map_and_good_share_are_those_of_the_detector(parts: Path, tmp_path: Path, fitted: Path) -> None:
    out = tmp_path / "out"
    predict_files(fitted, [parts], out)
    detector, _ = load_detector(RunFolder(fitted))
    for row in rows_of(out / "predictions.csv"):
        pixels = read_image(Path(row["image"]), (64, 64))
        prediction = detector(to_tensor(pixels[None], "cpu"))
        own_size = read_image(Path(row["image"])).shape[:2]
        with Image.open(out / row["map"]) as found:
            expected = resize_map(prediction.anomaly_map[0, 0].detach().numpy(), own_size)
            np.testing.assert_allclose(np.array(found), expected, rtol=1e-3)
        assert float(row["score"]) == pytest.approx(float(prediction.score), rel=1e-3)
        expected = RunFolder(fitted).read_verdicts().judge(float(row["score"]), np.zeros((64, 64)))
        assert float(row["good_share"]) == expected.good_share


def test_broken_images_get_a_row_with_the_reason_and_stop_nobody(parts: Path, tmp_path: Path, fitted: Path) -> None:
    (parts / "b.png").write_bytes((parts / "b.png").read_bytes()[:500])
    (parts / "night" / "note.png").write_text("not a picture")
    out = tmp_path / "out"
    done: list[tuple[int, int]] = []
    summary = predict_files(fitted, [parts], out, progress=lambda *counts: done.append(counts))
    rows = rows_of(out / "predictions.csv")
    broken = [row for row in rows if row["error"]]
    assert [Path(row["image"]).name for row in broken] == ["b.png", "note.png"]
    for name in set(COLUMNS) - {"image", "error"}:
        assert all(row[name] == "" for row in broken)  # not OK either
    assert summary.errors == [row["error"] for row in broken]
    assert str(parts / "b.png") in summary.errors[0]
    assert len(list((out / "maps").rglob("*.tiff"))) == len(list((out / "overlays").rglob("*.png"))) == 4
    assert done[-1] == (6, 6)


def test_an_image_that_goes_away_midway_is_one_broken_image(parts: Path, tmp_path: Path, fitted: Path) -> None:
    def remove(done: int, total: int) -> None:
        for path in parts.rglob("*.png"):
            path.unlink()

    for number in range(40):
        save(parts / f"m{number:02}.png", plate(number))
    summary = predict_files(fitted, [parts], tmp_path / "out", progress=remove)
    assert summary.count == 45
    assert 0 < len(summary.errors) < 45
    assert all("no such file" in error for error in summary.errors)


def test_all_images_broken_is_a_table_of_reasons(tmp_path: Path, fitted: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    summary = predict_files(fitted, [folder], tmp_path / "out")
    assert len(summary.errors) == summary.count == 1
    assert not (tmp_path / "out" / "maps").exists()


def test_a_second_run_does_not_look_at_the_results_of_the_first(parts: Path, fitted: Path) -> None:
    before = predict_files(fitted, [parts], parts)
    again = predict_files(fitted, [parts], parts)
    assert again.count == before.count == 5


def test_without_good_parts_good_share_is_empty_and_nothing_is_ok(parts: Path, tmp_path: Path, fitted: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    RunFolder(run).write_verdicts(Verdicts(GoodScores(parts={"plate": ()})))
    summary = predict_files(run, [parts / "a.png"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    assert (row["good_share"], row["map"]) == ("", "maps/a.tiff")
    assert (row["verdict"], row["reason"]) == ("REVIEW", "only 0 good parts to compare with")
    assert not summary.can_judge


def test_folders_are_walked_in_order_without_hidden_files_and_linked_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.bmp", ".hidden/x.png", ".y.png", "@eaDir/a.bmp/thumb.png", "__MACOSX/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    assert [image.place for image in gather([tmp_path / "in"], tmp_path / "out")] == ["a", "b/1", "b/2"]


def test_two_images_of_one_place_are_an_error_naming_both(tmp_path: Path) -> None:
    for name in ("left/1.png", "right/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"place '1\.png'") as caught:
        gather([tmp_path / "left", tmp_path / "right"], tmp_path / "out")
    assert str(tmp_path / "left" / "1.png") in str(caught.value)
    assert str(tmp_path / "right" / "1.png") in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error_naming_it(parts: Path, tmp_path: Path, fitted: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    with pytest.raises(FileError, match="writable"):
        predict_files(fitted, [parts], out)


def test_a_file_in_the_way_of_the_results_is_an_error_naming_it(parts: Path, tmp_path: Path, fitted: Path) -> None:
    out = tmp_path / "out"
    out.write_text("in the way")
    with pytest.raises(FileError, match=str(out)):
        predict_files(fitted, [parts], out)
    assert out.read_text() == "in the way"


def test_a_part_kept_as_png_and_as_jpg_gets_two_places_and_one_given_twice_gets_one(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        (tmp_path / name).touch()
    assert [image.place for image in gather([tmp_path], tmp_path / "out")] == ["a.jpg", "a.png", "b"]
    assert [image.place for image in gather([tmp_path / "b.png"] * 2, tmp_path / "out")] == ["b"]


def test_interrupted_it_keeps_its_rows_and_resume_goes_on_with_the_others(
    parts: Path, tmp_path: Path, fitted: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(fitted, [parts], out, progress=stop)
    assert len(rows_of(out / "predictions.csv")) == 2
    with (out / "predictions.csv").open("a") as file:
        file.write("a line cut by a ki")
    done: list[tuple[int, int]] = []
    summary = predict_files(fitted, [parts], out, resume=True, progress=lambda *counts: done.append(counts))
    assert done[0] == (3, 5) and summary.count == 5
    predict_files(fitted, [parts], whole)
    for name in ("predictions.csv", "regions.jsonl"):
        assert (out / name).read_text() == (whole / name).read_text()


def test_resume_tries_broken_images_again_and_refuses_the_rows_of_another_detector(
    parts: Path, tmp_path: Path, fitted: Path
) -> None:
    good = (parts / "b.png").read_bytes()
    (parts / "b.png").write_bytes(b"")
    out = tmp_path / "out"
    assert len(predict_files(fitted, [parts], out).errors) == 1
    (parts / "b.png").write_bytes(good)
    assert predict_files(fitted, [parts], out, resume=True).errors == []
    assert len(rows_of(out / "predictions.csv")) == 5
    (out / "predictions.json").write_text('{"detector_sha256": "another", "precision": "float32"}')
    with pytest.raises(RunError, match="choose another --out, or leave out --resume"):
        predict_files(fitted, [parts], out, resume=True)


def test_results_of_an_earlier_call_are_replaced_and_files_of_others_stay(
    parts: Path, tmp_path: Path, fitted: Path
) -> None:
    out = tmp_path / "out"
    predict_files(fitted, [parts], out)
    (out / "maps" / "mine.tiff").write_text("not listed in the table")
    predict_files(fitted, [parts / "a.png"], out)
    assert [row["image"] for row in rows_of(out / "predictions.csv")] == [str(parts / "a.png")]
    assert {path.name for path in (out / "maps").rglob("*.tiff")} == {"a.tiff", "mine.tiff"}
    assert {path.name for path in (out / "overlays").rglob("*.png")} == {"a.png"}


def test_maps_and_overlays_can_be_left_out(parts: Path, tmp_path: Path, fitted: Path) -> None:
    out = tmp_path / "out"
    predict_files(fitted, [parts], out, maps=False, overlays=False)
    assert {path.name for path in out.iterdir()} == {"predictions.csv", "predictions.json", "regions.jsonl"}
    assert all(row["score"] and not row["map"] and not row["overlay"] for row in rows_of(out / "predictions.csv"))


def test_a_score_that_is_not_finite_is_an_error_row_and_never_a_share(
    parts: Path, tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = load(fitted)
    network = sick.network
    sick.network = lambda pixels: (network(pixels)[0], np.full(len(pixels), np.nan))  # type: ignore[assignment]
    sick.network.image_size, sick.network.precision = network.image_size, network.precision
    monkeypatch.setattr(prediction, "open_predictor", lambda *args, **options: sick)
    summary = predict_files(fitted, [parts], tmp_path / "out")
    assert len(summary.errors) == 5
    for row in rows_of(tmp_path / "out" / "predictions.csv"):
        assert "expected a finite score" in row["error"] and row["score"] == row["good_share"] == ""
        assert row["verdict"] == "REVIEW" and row["reason"]


@pytest.fixture
def odd_parts(tmp_path: Path) -> Path:
    """A good part, one with a bright square, a black, a saturated and a blank image, and one of another size."""
    folder = tmp_path / "odd"
    defect = plate(300)
    defect[20:32, 24:40] = (250, 20, 20)
    save(folder / "a_good.png", plate(301))
    save(folder / "b_defect.png", defect)
    for name, grey in (("c_black", 0), ("d_saturated", 255), ("e_blank", 120)):
        save(folder / f"{name}.png", np.full_like(defect, grey))
    save(folder / "f_large.png", np.tile(plate(302), (3, 3, 1)))
    return folder


def test_each_image_gets_a_verdict_and_what_cannot_show_a_part_is_never_ok(
    odd_parts: Path, tmp_path: Path, fitted: Path
) -> None:
    out = tmp_path / "out"
    summary = predict_files(fitted, [odd_parts], out)
    rows = rows_of(out / "predictions.csv")
    assert [row["verdict"] for row in rows][1:] == ["NG", "REVIEW", "REVIEW", "REVIEW", "REVIEW"]
    assert rows[1]["reason"] == "scores above all of 6 good parts"
    for row, word in zip(rows[2:], ("blank", "blank", "blank", "144×192 px, good ones are 48×64"), strict=True):
        assert word in row["reason"]
    assert summary.errors == [] and summary.verdicts.total() == 6
    assert summary.verdicts == {word: [row["verdict"] for row in rows].count(word) for word in summary.verdicts}


def test_regions_are_a_line_an_image_at_its_own_size_where_the_defect_is(
    odd_parts: Path, tmp_path: Path, fitted: Path
) -> None:
    out = tmp_path / "out"
    predict_files(fitted, [odd_parts], out)
    lines = [json.loads(line) for line in (out / "regions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [row["image"] for row in rows_of(out / "predictions.csv")]
    found = lines[1]["regions"]
    assert found == sorted(found, key=lambda region: -region["peak"])
    x, y, width, height = found[0]["box"]
    assert x < 32 < x + width and y < 26 < y + height  # the middle of the square
    assert x >= 0 and x + width <= 64 and y >= 0 and y + height <= 48
    assert 0 < found[0]["area_px"] <= width * height
    threshold = RunFolder(fitted).read_verdicts().limits().region.threshold
    assert all(region["peak"] > threshold for line in lines for region in line["regions"])


def test_rows_under_other_budgets_are_not_gone_on_with(parts: Path, tmp_path: Path, fitted: Path) -> None:
    import shutil

    from threecad.deciding import change_verdict

    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    predict_files(run, [parts], tmp_path / "out")
    change_verdict(run, review_at=0.5)
    with pytest.raises(RunError, match="choose another --out, or leave out --resume"):
        predict_files(run, [parts], tmp_path / "out", resume=True)


def test_images_larger_than_the_fit_allows_are_looked_at_when_asked(
    parts: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = prediction.open_predictor

    def with_small_limit(*args: Any, **options: Any) -> Predictor:
        return replace(usual(*args, **options), decoding={"max_pixels": 100})

    monkeypatch.setattr(prediction, "open_predictor", with_small_limit)
    refused = predict_files(fitted, [parts / "a.png"], tmp_path / "out")
    assert "predict takes --max-pixels 6144, elsewhere --set data.max_pixels=6144 allows it" in refused.errors[0]
    assert predict_files(fitted, [parts / "a.png"], tmp_path / "out", max_pixels=6144).errors == []
