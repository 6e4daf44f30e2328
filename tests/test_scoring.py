"""Every good part is scored by a model that has not learnt from it: kept aside, by folds, or in closed form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import plate, save
from threecad.data.loading import content_hashes
from threecad.errors import DataError, SettingsError
from threecad.fit_data import read_fit_data, usual_holdout
from threecad.fitting import fit
from threecad.inference import load
from threecad.presets import resolve_settings
from threecad.runs import RunFolder
from threecad.training import StepReport
from threecad.verdicts import image_name

METHOD = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 6}
FLOAT32 = {"precision": "float32"}


def fitted_with(root: Path, run: Path, **settings: dict[str, object]) -> RunFolder:
    training = {**FLOAT32, **settings.pop("training", {})}
    fit("padim", root, run, settings={"method": METHOD, **settings, "training": training})
    return RunFolder(run)


@pytest.mark.parametrize(("parts", "aside"), [(4, 0), (9, 0), (10, 5), (20, 7), (60, 20), (160, 53), (2000, 299)])
def test_a_third_of_the_parts_is_kept_aside_but_never_too_few_and_never_more_than_needed(
    parts: int, aside: int
) -> None:
    assert usual_holdout(parts) == aside


def test_in_closed_form_every_part_counts_and_scores_as_by_a_fit_without_it(tree: Path, tmp_path: Path) -> None:
    many = {"method": {**METHOD, "features": 40, "ridge": 1e-6}}  # more than parts: each is far from all others
    good = fitted_with(tree, tmp_path / "all", **many).read_verdicts().good
    assert len(good.of("plate")) == len(good.learnt) == 12
    fewer = tmp_path / "fewer"
    shutil.copytree(tree, fewer)
    (fewer / "plate" / "train" / "good" / "003.png").unlink()
    without = fitted_with(fewer, tmp_path / "without", **many)
    left_out = load(without.path)(tree / "plate" / "train" / "good" / "003.png").score
    names = {part.part: part.score for part in good.of("plate")}
    (sha256,) = content_hashes([tree / "plate" / "train" / "good" / "003.png"])
    assert names[image_name(sha256)] == pytest.approx(left_out, rel=0.02)
    seen = load(tmp_path / "all")(tree / "plate" / "train" / "good" / "003.png").score
    assert seen < 0.8 * left_out  # what has been learnt from looks more alike than it is


def test_by_folds_each_part_is_scored_by_the_others_and_the_model_learns_from_all(tree: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    lines: list[str] = []

    def watch(report: StepReport) -> None:
        phases.append(report.phase)

    settings = {"method": METHOD, "training": {**FLOAT32, "folds": 3}}
    fit("padim", tree, tmp_path / "run", settings=settings, callback=watch, notify=lines.append)
    run = RunFolder(tmp_path / "run")
    good = run.read_verdicts().good
    assert len(good.of("plate")) == len(good.learnt) == 12
    assert list(dict.fromkeys(phases)) == [*(f"fold {n}/3 gaussians" for n in (1, 2, 3)), "gaussians"]
    assert "4 times: in 3 folds that score each other, then all" in lines[0]
    assert "fits are left, about" in lines[1]
    assert not (run.path / "folds").exists()
    assert run.read_record().scoring == "folds"


def test_an_interrupted_fit_does_finished_folds_no_second_time(tree: Path, tmp_path: Path) -> None:
    settings = {"method": METHOD, "training": {**FLOAT32, "folds": 3}}
    whole = tmp_path / "whole"
    fit("padim", tree, whole, settings=settings)

    def stop(report: StepReport) -> None:
        if report.phase.startswith("fold 3"):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit("padim", tree, run, settings=settings, callback=stop)
    phases: set[str] = set()
    fit("padim", tree, run, settings=settings, resume=True, callback=lambda report: phases.add(report.phase))
    assert phases == {"fold 3/3 gaussians", "gaussians"}
    for name in ("good.json", "verdict.toml", "detector.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture
def lamps(tmp_path: Path) -> Path:
    """A plain folder of 12 parts, each under two lamps."""
    for number in range(12):
        for lamp in "ab":
            save(tmp_path / "lamps" / f"p{number:02}_{lamp}.png", plate(2 * number + (lamp == "b")))
    return tmp_path / "lamps"


@pytest.mark.parametrize("way", [{"data": {"holdout": 0.5}}, {"training": {"folds": 4}}])
def test_neither_hold_out_nor_folds_divide_a_part(way: dict[str, dict[str, object]], lamps: Path) -> None:
    data = {"part": r"(p\d+)_", **way.get("data", {})}
    found = read_fit_data("padim", lamps, (), resolve_settings("padim", {**way, "data": data}))
    parts = {}
    for sample in found.every:
        known = found.known[sample.image]
        place = (known.fold, sample in found.held_out)
        assert parts.setdefault(known.part, place) == place
    assert len(parts) == 12 and len(set(parts.values())) > 1


def test_a_part_scores_as_its_highest_image_and_lots_are_kept(lamps: Path, tmp_path: Path) -> None:
    data = {"part": r"(p\d+)_", "lot": r"p(\d)", "holdout": 0.5}
    good = fitted_with(lamps, tmp_path / "run", data=data).read_verdicts().good
    assert len(good.of()) == 6 and {part.lot for part in good.of()} <= {"0", "1"}
    assert all(part.part.startswith("p") for part in good.of())


def test_images_of_one_content_are_one_part(tree: Path) -> None:
    folder = tree / "plate" / "train" / "good"
    shutil.copy(folder / "000.png", folder / "copy.png")
    found = read_fit_data("padim", tree, (), resolve_settings("padim", {"data": {"holdout": 0.5}}))
    twins = [sample in found.held_out for sample in found.every if sample.image.stem in ("000", "copy")]
    assert twins[0] == twins[1]


@pytest.mark.parametrize(
    ("tables", "error", "said"),
    [
        ({"data": {"part": "frame(\\d+)"}}, DataError, "data.part = .* finds a part in 0 of 12 image paths"),
        ({"data": {"lot": "("}}, SettingsError, "setting 'data.lot': expected a regular expression"),
        ({"training": {"folds": 20}}, DataError, "20 folds need at least 20 good parts, found 12"),
        ({"training": {"folds": 1}}, SettingsError, "training.folds"),
        ({"training": {"folds": 3}, "data": {"holdout": 0.2}}, SettingsError, "two ways to score good parts"),
        ({"training": {"folds": 3}, "data": {"tiles": [2, 2]}}, SettingsError, "expected none with tiles"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_written(
    tables: dict[str, dict[str, object]], error: type[Exception], said: str, tree: Path, tmp_path: Path
) -> None:
    settings = {"method": METHOD, **tables}
    with pytest.raises(error, match=said) as caught:
        fit("padim", tree, tmp_path / "run", settings=settings)
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_a_run_without_good_parts_says_so_in_its_file(tree: Path, tmp_path: Path) -> None:
    good_folder = tree / "plate" / "train" / "good"
    for image in sorted(good_folder.iterdir())[4:]:
        image.unlink()
    run = fitted_with(tree, tmp_path / "run", data={"holdout": 0.25})
    verdicts = run.read_verdicts()
    assert len(verdicts.good.of("plate")) == 1
    assert verdicts.summary() == ["Every part is REVIEW: 1 good parts to compare with."]
    assert json.loads(run.good_file.read_text())["conditions"]["precision"] == "float32"


def test_looks_are_those_of_all_good_images(tree: Path, tmp_path: Path) -> None:
    save(tree / "plate" / "train" / "good" / "tall.png", np.tile(plate(40), (2, 1, 1)))
    good = fitted_with(tree, tmp_path / "run", data={"holdout": 0.5}).read_verdicts().good
    assert (good.looks["plate"].lowest.height, good.looks["plate"].highest.height) == (48, 96)
