"""Regions of interest, tiles and the parts' own shape, from a fit to a prediction: for every method, known by none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import threecad
from conftest import plate, save
from threecad.checkpoint import own_tensors
from threecad.errors import DataError, SettingsError
from threecad.methods import METHODS
from threecad.nets.pyramid import pretrained_pyramids
from threecad.presets import detector_of, resolve_settings, size_on_grid
from threecad.runs import RunFolder
from threecad.stopping import Interrupted
from threecad.training import StepReport

METHOD = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}


def fit(tree: Path, run: Path, **data: object) -> Path:
    settings = {"method": METHOD, "data": {"holdout": 0.25} | data, "training": {"precision": "float32"}}
    threecad.fit("padim", tree, run, settings=settings)
    return run


def left_half(folder: Path) -> Path:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 255
    return save(folder / "roi.png", mask)


def test_what_lies_outside_the_region_changes_neither_score_nor_map(tree: Path, tmp_path: Path) -> None:
    predictor = threecad.load(fit(tree, tmp_path / "run", roi=str(left_half(tmp_path))))
    part, spoilt = plate(900), plate(900)
    spoilt[10:30, 40:60] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    clean, other = predictor(part), predictor(spoilt)
    assert clean.score == other.score and np.array_equal(clean.anomaly_map, other.anomaly_map)
    assert (clean.anomaly_map[:, 32:] == clean.anomaly_map[:, 32:].min()).all()
    part[10:30, 5:25] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    assert predictor(part).score > clean.score


def test_the_edge_of_the_region_is_nothing_that_the_detector_reports(tree: Path, tmp_path: Path) -> None:
    """The peak of a good part's map is no more often at the painted edge than elsewhere."""
    predictor = threecad.load(fit(tree, tmp_path / "run", roi=str(left_half(tmp_path))))
    maps = np.stack([result.anomaly_map for result in predictor([plate(800 + n) for n in range(24)])])[:, :, :32]
    mean = maps.mean(axis=0)
    assert mean[:, 26:].mean() < mean[:, :26].mean() + 2 * mean[:, :26].std()


def test_a_region_moves_with_its_run_and_pictures_of_another_size_are_refused(tree: Path, tmp_path: Path) -> None:
    run = fit(tree, tmp_path / "run", roi=str(left_half(tmp_path)))
    (tmp_path / "roi.png").unlink()
    moved = run.rename(tmp_path / "elsewhere")
    predictor = threecad.load(moved)
    with pytest.raises(DataError, match="size of its region of interest, 48×64, found 96×64"):
        predictor(np.tile(plate(1), (2, 1, 1)))


def test_a_region_in_shares_fits_pictures_of_any_size(tree: Path, tmp_path: Path) -> None:
    predictor = threecad.load(fit(tree, tmp_path / "run", roi=[[0.0, 0.0, 0.5, 1.0]]))
    result = predictor(np.tile(plate(1), (2, 1, 1)))
    assert (result.anomaly_map[:, 33:] == result.anomaly_map.min()).all()


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([[0.0, 0.0, 1.5, 1.0]], "expected shapes of 4, 6, 8, … numbers between 0 and 1"),
        ([[0.5, 0.5, 0.5, 0.5]], "data.roi"),
        ("nowhere.png", "no such file"),
    ],
)
def test_a_region_that_covers_nothing_or_is_not_there_is_refused_and_leaves_nothing(
    tree: Path, tmp_path: Path, roi: object, message: str
) -> None:
    with pytest.raises((DataError, SettingsError), match=message):
        fit(tree, tmp_path / "run", roi=roi)
    assert not (tmp_path / "run").exists()


def test_an_empty_mask_is_no_region(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a region that covers something"):
        fit(tree, tmp_path / "run", roi=str(save(tmp_path / "roi.png", np.zeros((48, 64), np.uint8))))


def test_with_tiles_a_defect_outscores_the_good_parts_and_its_map_peaks_where_it_is(tree: Path, tmp_path: Path) -> None:
    run = fit(tree, tmp_path / "run", tiles=[2, 2])
    predictor, record = threecad.load(run), RunFolder(run).read_record()
    assert set(record.map_units) == {"tile", "whole"}
    part = plate(901)
    good = predictor(part)
    part[30:40, 44:56] = 0
    bad = predictor(part)
    assert bad.score > RunFolder(run).read_verdicts().good.scores("plate").max()
    assert bad.score > good.score
    row, column = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert 24 <= row <= 46 and 38 <= column <= 62
    scores = threecad.evaluate(run, tree)
    assert scores["i_auroc"] > 0.9 and scores["p_auroc"] > 0.8


def test_tiles_larger_than_the_parts_are_refused_and_leave_nothing(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected tiles no larger than the picture, found 128 px in 48 px"):
        fit(tree, tmp_path / "run", tile_px=128)
    with pytest.raises(SettingsError, match="expected tiles or tile_px, found both"):
        fit(tree, tmp_path / "run", tile_px=32, tiles=[1, 2])
    assert not (tmp_path / "run").exists()


def test_tiles_by_size_need_parts_of_one_size(tree: Path, tmp_path: Path) -> None:
    big = np.tile(plate(1), (2, 2, 1))
    save(tree / "plate" / "train" / "good" / "007.png", big)
    with pytest.raises(DataError, match=r"set the number of tiles \(data.tiles\) instead of their size"):
        fit(tree, tmp_path / "run", tile_px=32)


def test_the_parts_own_shape_is_kept_at_the_budget_of_pixels(tree: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    settings = {
        "method": {"backbone": "resnet10t.c3_in1k", "weights": "random", "features": 4, "pixels": 12_288},
        "training": {"preset": "quick"},
    }
    threecad.fit("padim", tree, tmp_path / "run", settings=settings, notify=lines.append)
    record = RunFolder(tmp_path / "run").read_record()
    assert record.settings["method"]["image_size"] == [96, 128]
    assert record.settings["evaluation"]["size"] == [96, 128]
    assert "method.image_size" not in record.departures
    assert any("96×128 px" in line for line in lines)
    assert threecad.evaluate(tmp_path / "run", tree)["evaluation_size"] == [96, 128]


def test_parts_of_mixed_shapes_get_the_median_one_and_are_told(tree: Path, tmp_path: Path) -> None:
    for number in range(3):
        save(tree / "plate" / "train" / "good" / f"{number:03d}.png", np.tile(plate(number), (2, 1, 1)))
    lines: list[str] = []
    settings = {"method": {**METHOD, "image_size": "auto", "pixels": 12_288}, "data": {"holdout": 0.25}}
    threecad.fit("padim", tree, tmp_path / "run", settings=settings, notify=lines.append)
    assert any("the parts differ in shape" in line for line in lines)
    assert RunFolder(tmp_path / "run").read_record().settings["method"]["image_size"] == [96, 128]


def test_sizes_lie_on_the_grid_near_the_budget_and_the_aspect() -> None:
    assert size_on_grid((460, 1130), 65_536, 32) == (160, 416)
    assert size_on_grid((1, 1), 65_536, 32) == (256, 256)
    assert size_on_grid((1, 1000), 65_536, 32)[0] == 32


def test_a_bare_detector_needs_a_size_that_is_settled() -> None:
    with pytest.raises(SettingsError, match="'auto' is settled by a fit"):
        threecad.build("padim", weights="random", image_size="auto")


def test_grey_levels_of_fewer_bits_are_scaled_alike_in_fit_and_prediction(tmp_path: Path) -> None:
    def deep(number: int) -> Image.Image:
        return Image.fromarray(plate(number)[..., 0].astype(np.uint16) << 4)

    folder = tmp_path / "parts" / "good"
    folder.mkdir(parents=True)
    for number in range(6):
        deep(number).save(folder / f"{number}.png")
    settings = {"method": METHOD, "data": {"bits": 12}, "training": {"precision": "float32"}}
    threecad.fit("padim", folder, tmp_path / "run", settings=settings)
    predictor = threecad.load(tmp_path / "run")
    deep(50).save(tmp_path / "a.png")
    shallow = np.repeat(plate(50)[..., :1], 3, axis=2)
    assert predictor(tmp_path / "a.png").score == pytest.approx(predictor(shallow).score, rel=0.2)


def test_what_lies_outside_is_painted_in_the_parts_colour_whatever_their_depth(tmp_path: Path) -> None:
    folder = tmp_path / "parts" / "good"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(plate(number)[..., 0].astype(np.uint16) << 4).save(folder / f"{number}.png")
    run = fit(folder, tmp_path / "run", roi=[[0.0, 0.0, 0.5, 1.0]], bits=12, holdout=0.0)
    expected = np.mean([plate(number)[:, :32, 0] for number in range(4)])
    assert RunFolder(run).read_record().region_fill == pytest.approx([expected] * 3, abs=3)


def test_each_place_has_a_detector_that_has_learnt_from_no_other(tree: Path, tmp_path: Path) -> None:
    """The upper right tile is bright on every good part: dark, as its neighbours are, it is a defect there alone."""
    for image in (tree / "plate" / "train" / "good").iterdir():
        pixels = np.array(Image.open(image))
        pixels[4:20, 40:60] = 230
        save(image, pixels)
    run = fit(tree, tmp_path / "run", tiles=[2, 2], each=True, whole=False)
    predictor, record = threecad.load(run), RunFolder(run).read_record()
    assert list(record.map_units) == ["place 1", "place 2", "place 3", "place 4"]
    good, bad = plate(901), plate(901)
    good[4:20, 40:60] = 230
    results = predictor([good, bad])
    assert results[1].score > RunFolder(run).read_verdicts().good.scores("plate").max() > results[0].score
    assert results[1].anomaly_map.argmax() % 64 >= 32
    assert predictor(bad).score == pytest.approx(results[1].score, rel=1e-3)


@pytest.mark.parametrize("method", ["padim", "simplenet"])
def test_a_fit_of_places_that_was_interrupted_goes_on_to_the_same_numbers(
    method: str, tree: Path, tmp_path: Path
) -> None:
    tiny = METHODS[method].Config.tiny().model_dump(mode="json", exclude_none=True)
    settings = {
        "method": tiny,
        "data": {"tiles": [1, 2], "each": True, "holdout": 0.25},
        "training": {"steps": 3, "batch": 4, "precision": "float32"},
    }

    def stop_in_the_second_place(report: StepReport) -> None:
        if report.phase.startswith("place 2") and report.step >= 1:
            raise Interrupted

    whole = threecad.fit(method, tree, tmp_path / "whole", settings=settings)
    with pytest.raises(Interrupted):
        threecad.fit(method, tree, tmp_path / "run", settings=settings, callback=stop_in_the_second_place)
    resumed = threecad.fit(method, tree, tmp_path / "run", settings=settings, resume=True)
    assert own_tensors(whole).keys() == own_tensors(resumed).keys()
    for name, tensor in own_tensors(whole).items():
        assert torch.equal(tensor, own_tensors(resumed)[name]), name
    assert RunFolder(tmp_path / "run").read_record().steps in (0, 9)  # three of each place


def test_a_detector_a_place_needs_a_grid_and_whole_parts(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected tiles = \[rows, columns\] beside each = true"):
        fit(tree, tmp_path / "run", tile_px=32, each=True)
    run = fit(tree, tmp_path / "run", tiles=[1, 2], each=True)
    with pytest.raises(DataError, match="expected 3 frames of each part, found 4 together"):
        threecad.load(run).detector(torch.zeros(4, 3, 64, 64))


def test_detectors_of_places_share_their_pretrained_backbone() -> None:
    settings = resolve_settings(
        "padim", {"method": {"backbone": "embedded", "features": 4}, "data": {"tiles": [1, 2], "each": True}}
    )
    first, *others = pretrained_pyramids(detector_of("padim", settings)).values()
    assert len(others) == 2
    for other in others:
        for mine, its in zip(first.parameters(), other.parameters(), strict=True):
            assert mine is its
