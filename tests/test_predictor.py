"""A loaded run looks at pictures of any size and kind, says the same each time, and refuses what does not fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import threecad
from conftest import plate, save
from threecad import devices
from threecad.errors import DataError, SettingsError
from threecad.inference import load
from threecad.predictor import Predictor, Result
from threecad.runs import RunFolder
from threecad.verdicts import Verdicts, good_share


@pytest.fixture(scope="module")
def predictor(fitted: Path) -> Predictor:
    return load(fitted)


def test_a_path_a_pil_image_and_pixels_of_one_part_give_one_result(predictor: Predictor, tmp_path: Path) -> None:
    pixels = plate(3)
    file = save(tmp_path / "a.png", pixels)
    results = [predictor(picture) for picture in (file, str(file), Image.fromarray(pixels), pixels)]
    assert len({result.score for result in results}) == 1
    assert all(np.array_equal(result.anomaly_map, results[0].anomaly_map) for result in results)


def test_one_picture_gives_one_result_and_a_list_a_list_in_order(predictor: Predictor) -> None:
    one = predictor(plate(1))
    assert isinstance(one, Result) and one.anomaly_map.shape == (48, 64)
    several = predictor([plate(1), np.tile(plate(2), (2, 3, 1))])
    assert [result.anomaly_map.shape for result in several] == [(48, 64), (96, 192)]
    assert several[0].score == pytest.approx(one.score, rel=1e-3)
    assert predictor([]) == []


def test_share_and_verdict_are_told_from_the_good_parts_that_the_fit_kept_aside(
    predictor: Predictor, fitted: Path
) -> None:
    verdicts = RunFolder(fitted).read_verdicts()
    assert len(verdicts.good.of("plate")) == 6
    result = predictor(plate(5))
    assert result.good_share == good_share(result.score, verdicts.good.scores())
    assert (result.verdict, result.reason) == verdicts.decide(result.score)
    broken = plate(5)
    broken[10:30, 20:40] = (255, 0, 0)
    found = predictor(broken)
    assert found.verdict == "NG" and found.reason == "scores above all of 6 good parts"
    assert found.regions[0].peak == pytest.approx(float(found.anomaly_map.max()), rel=0.2)
    covered = predictor(np.zeros_like(broken))
    assert (covered.verdict, covered.reason) == ("REVIEW", "the image is blank")


def test_good_parts_of_other_conditions_are_not_trusted_and_calibrating_is_advised(
    fitted: Path, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    folder = RunFolder(run)
    verdicts = folder.read_verdicts()
    good = verdicts.good.model_copy(update={"conditions": {**verdicts.good.conditions, "precision": "bf16"}})
    folder.write_verdicts(Verdicts(good))
    result = load(run)(plate(5))
    assert (result.verdict, result.good_share, result.regions) == ("REVIEW", None, [])
    assert result.reason == "good parts were scored otherwise: precision was bf16, is float32"


def test_a_grey_picture_is_one_in_which_the_three_colours_are_alike(predictor: Predictor) -> None:
    grey = plate(1)[..., 0]
    assert predictor(Image.fromarray(grey)).score == predictor(np.repeat(grey[..., None], 3, axis=2)).score


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((48, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        torch.zeros(1, 3, 64, 64),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused_and_says_what_was_expected(
    predictor: Predictor, picture: object
) -> None:
    with pytest.raises(DataError, match=r"expected a path, a PIL image or an array \(H, W, 3\) of uint8, found"):
        predictor(picture)  # type: ignore[call-overload]


def test_a_category_that_was_not_learnt_is_refused(predictor: Predictor) -> None:
    with pytest.raises(SettingsError, match="the run has learnt plate and says nothing of 'cover'"):
        predictor(plate(1), category="cover")


def test_several_threads_may_call_one_predictor(predictor: Predictor) -> None:
    pictures = [plate(number) for number in range(16)]
    alone = [predictor(picture).score for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert [result.score for result in pool.map(predictor, pictures)] == alone


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(1, 3, 128, 128),
        torch.rand(3, 64, 64),
        torch.rand(1, 1, 64, 64),
        torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8),
        np.zeros((1, 3, 64, 64)),
    ],
)
def test_the_bare_network_refuses_what_does_not_fit(predictor: Predictor, images: object) -> None:
    with pytest.raises(DataError, match=r"expected images \(B, 3, 64, 64\) of floats in \[0, 1\], found"):
        predictor.detector(images)  # type: ignore[arg-type]


def test_a_run_of_another_precision_predicts_in_this_machines_and_says_so(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(fitted)
    record = folder.read_record()
    monkeypatch.setattr(RunFolder, "read_record", lambda self: record.model_copy(update={"precision": "bf16"}))
    monkeypatch.setattr("threecad.devices.has_native_bf16", lambda device: False)
    lines: list[str] = []
    elsewhere = load(fitted, notify=lines.append)
    assert elsewhere.precision == "float32"
    assert [line.split(":")[0] for line in lines] == ["the run was fitted in bf16, this machine predicts in float32"]
    with pytest.raises(SettingsError, match="bf16 has no native support on this cpu; use float32"):
        load(fitted, precision="bf16")


def test_a_device_or_a_precision_that_is_not_there_is_refused(fitted: Path) -> None:
    with pytest.raises(SettingsError, match="expected a device of this machine, such as cpu or cuda, found 'tpu9'"):
        load(fitted, device="tpu9")
    with pytest.raises(SettingsError, match="expected auto, float32 or bf16, found 'int8'"):
        load(fitted, precision="int8")
    assert devices.choose_device("cpu") == torch.device("cpu")


def test_the_package_predicts_and_evaluates_by_one_call(fitted: Path, common_tree: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", plate(3))
    assert isinstance(threecad.predict(fitted, file), Result)
    assert len(threecad.predict(fitted, [file, file])) == 2
    scores = threecad.evaluate(fitted, common_tree, out=tmp_path / "scores.json")
    assert scores["category"] == "plate" and (tmp_path / "scores.json").is_file()
    assert threecad.__version__
