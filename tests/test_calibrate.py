"""`threecad calibrate`: further good parts at any time, twice as once, under the conditions of the first ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import plate, save
from test_cli import Ask, ask, refused  # noqa: F401
from threecad.calibrating import Calibrated, calibrate, good_scores
from threecad.deciding import kept_told
from threecad.errors import DataError, RunError, SettingsError
from threecad.inference import load
from threecad.runs import RunFolder
from threecad.verdicts import AREAS_PX, GoodPart, GoodScores, Verdicts, VerdictSettings


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the fitted run that may be changed."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of eight further good parts."""
    for number in range(8):
        save(tmp_path / "more" / f"{number}.png", plate(400 + number))
    return tmp_path / "more"


def test_further_good_parts_lower_the_bound_and_are_scored_as_predict_scores_them(run: Path, more: Path) -> None:
    done = calibrate(run, [more])
    assert (len(done.before.good.of()), len(done.after.good.of())) == (6, 14)
    assert done.after.limits().reject.promised < done.before.limits().reject.promised
    kept = RunFolder(run).read_verdicts()
    assert kept == done.after
    scores = [load(run)(path).score for path in sorted(more.iterdir())]
    assert sorted(part.score for part in kept.good.of())[-1] >= max(scores)
    assert {round(score, 4) for score in scores} <= {round(part.score, 4) for part in kept.good.of()}


def test_the_same_images_again_change_nothing_even_under_other_names(run: Path, more: Path, tmp_path: Path) -> None:
    calibrate(run, [more])
    once = {name: (run / name).read_bytes() for name in ("good.json", "verdict.toml")}
    calibrate(run, [more])
    shutil.copytree(more, tmp_path / "again")
    (tmp_path / "again" / "0.png").rename(tmp_path / "again" / "zero.png")
    calibrate(run, [tmp_path / "again", more])
    assert {name: (run / name).read_bytes() for name in once} == once


def test_budgets_stay_when_parts_are_added(run: Path, more: Path) -> None:
    from threecad.deciding import change_verdict

    change_verdict(run, review_at=0.3)
    assert calibrate(run, [more]).after.settings.review_at == 0.3


def test_images_that_the_model_has_learnt_from_do_not_count(run: Path, more: Path, common_tree: Path) -> None:
    train = common_tree / "plate" / "train" / "good"  # the same twelve as the run's: six were learnt from
    done = calibrate(run, [train, more])
    assert (done.learnt, done.images, len(done.after.good.of())) == (6, 8, 14)  # the six kept aside count already
    learnt = [path for path in sorted(train.iterdir()) if path.name not in _held_out(run)]
    with pytest.raises(DataError, match="has learnt from all of the 6 images"):
        calibrate(run, learnt)


def _held_out(run: Path) -> set[str]:
    return {Path(name).name for name in RunFolder(run).read_record().holdout}


def test_other_conditions_are_refused_by_name_unless_all_is_forgotten(run: Path, more: Path) -> None:
    folder = RunFolder(run)
    verdicts = folder.read_verdicts()
    other = {**verdicts.good.conditions, "precision": "bf16"}
    folder.write_verdicts(Verdicts(verdicts.good.model_copy(update={"conditions": other})))
    before = folder.good_file.read_bytes()
    with pytest.raises(RunError, match="precision was bf16, is float32"):
        calibrate(run, [more])
    assert folder.good_file.read_bytes() == before
    done = calibrate(run, [more], anew=True)
    assert len(done.after.good.of()) == 8
    assert load(run)(plate(900)).good_share is not None


@pytest.mark.parametrize("broken", [b"", b"not a picture"])
def test_a_broken_image_is_named_and_nothing_is_changed(broken: bytes, run: Path, more: Path) -> None:
    (more / "3.png").write_bytes(broken)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(DataError, match=r"3\.png"):
        calibrate(run, [more])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_an_odd_image_among_good_ones_is_told(run: Path, more: Path) -> None:
    save(more / "black.png", np.zeros((48, 64, 3), np.uint8))
    lines: list[str] = []
    calibrate(run, [more], notify=lines.append)
    (line,) = lines
    assert "black.png: the image is blank" in line


def test_a_category_that_was_not_learnt_is_refused(run: Path, more: Path) -> None:
    with pytest.raises(SettingsError, match="has learnt plate and says nothing of 'cover'"):
        calibrate(run, [more], category="cover")


def test_the_command_shows_the_bound_before_and_now(ask: Ask, run: Path, more: Path) -> None:  # noqa: F811
    answer = ask("calibrate", run, more)
    assert answer.code == 0
    before, now = answer.out.splitlines()
    assert before.startswith("before: 6 good parts. Of good parts like these 6, at most 40 % are rejected")
    assert now.startswith("now: 14 good parts. Of good parts like these 14, at most 20 % are rejected")


def test_views_of_one_part_are_one_part_and_a_pattern_that_finds_none_is_refused(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    record = folder.read_record()
    record.settings["data"]["part"] = r"(p\d)_"
    folder.write_record(record)
    for number in range(6):
        save(tmp_path / "views" / f"p{number // 2}_{number % 2}.png", plate(500 + number))
    once = calibrate(run, [tmp_path / "views"]).after
    assert len(once.good.of()) == 6 + 3
    assert len(calibrate(run, [tmp_path / "views"]).after.good.of()) == 6 + 3
    before = folder.good_file.read_bytes()
    save(tmp_path / "nameless" / "x.png", plate(600))
    with pytest.raises(DataError, match=r"finds a part in 0 of 1 image paths, in none such as 'nameless/x\.png'"):
        calibrate(run, [tmp_path / "nameless"])
    assert folder.good_file.read_bytes() == before


def test_a_promise_that_rises_within_its_budget_says_why() -> None:
    def verdicts(n: int) -> Verdicts:
        parts = tuple(GoodPart(part=str(k), score=float(k), peaks=(0.0,) * len(AREAS_PX)) for k in range(n))
        return Verdicts(GoodScores(parts={"plate": parts}), VerdictSettings(reject_at=0.15, review_at=0.2))

    before, now, why = Calibrated(verdicts(20), verdicts(30), "plate", 10, 0).told()
    assert "at most 14 % are rejected" in before and "at most 15 % are rejected" in now
    assert "The budget of 15 % is used up: with 30 parts the threshold may leave 1 of them above, with 20 it" in why
    assert len(list(Calibrated(verdicts(30), verdicts(31), "plate", 1, 0).told())) == 2


def test_further_good_parts_are_held_against_the_promise_and_change_nothing(
    ask: Ask,  # noqa: F811
    run: Path,
    more: Path,
) -> None:
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    answer = ask("verdict", run, "--good", more)
    assert re.search(
        "Of these 8 good parts .* are rejected, with 95 % confidence; promised were at most 40 %", answer.out
    )
    assert "They score like the 6 that the thresholds come from" in answer.out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == kept


def test_parts_that_cannot_be_read_leave_the_budgets_as_they_were(ask: Ask, run: Path, tmp_path: Path) -> None:  # noqa: F811
    for option in ("--good", "--defects"):
        refused(ask("verdict", run, "--reject-at", 0.02, option, tmp_path / "nowhere"), "found nothing")
    assert RunFolder(run).read_verdicts().settings.reject_at == 0.01


def test_good_parts_of_another_day_are_noticed(run: Path, tmp_path: Path) -> None:
    for number in range(12):
        dirty = plate(500 + number).astype(float) + np.random.default_rng(number).normal(0, 25, (48, 64, 3))
        save(tmp_path / "another day" / f"{number}.png", np.clip(dirty, 0, 255).astype(np.uint8))
    verdicts = RunFolder(run).read_verdicts()
    kept = verdicts.kept(good_scores(run, [tmp_path / "another day"]))
    assert kept.n == 12 and kept.rejected.value == 1 and kept.p_value < 0.01
    assert "They do not score like the 6 that the thresholds" in list(kept_told(kept, verdicts.limits().reject))[1]


def test_good_parts_that_the_promise_stands_on_say_nothing_of_it(run: Path, common_tree: Path) -> None:
    with pytest.raises(DataError, match="all of these 6 images are counted already"):
        good_scores(run, [common_tree / "plate" / "train" / "good"])
