"""`threecad verdict`: what n good parts allow, what is promised, and `verdict.toml` changed or refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import plate, save
from test_cli import Ask, ask, refused  # noqa: F401
from threecad.deciding import HEADER, budget_rows, change_verdict, told
from threecad.errors import RunError, SettingsError
from threecad.runs import RunFolder
from threecad.verdicts import AREAS_PX, GoodPart, GoodScores, Verdicts


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the fitted run that may be changed."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def with_parts(run: Path, n: int) -> Verdicts:
    """The run with n good parts of its own conditions; every tenth is of lot 'b'."""
    folder = RunFolder(run)
    parts = tuple(
        GoodPart(part=str(k), score=float(k), peaks=(float(k),) * len(AREAS_PX), lot="ab"[k % 10 == 0])
        for k in range(n)
    )
    verdicts = Verdicts(GoodScores(conditions=folder.read_verdicts().good.conditions, parts={"plate": parts}))
    folder.write_verdicts(verdicts)
    return verdicts


def test_the_table_holds_each_budget_against_what_the_good_parts_allow(run: Path) -> None:
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in budget_rows(with_parts(run, 300))}
    assert rows["1 % (reject_at)"]["is kept by"] == "299 parts"
    assert rows["1 % (reject_at)"]["which promises"] == "1 %" and rows["1 % (reject_at)"]["parts missing"] == "-"
    assert rows["1 % (reject_at)"]["threshold"] == "299"
    assert rows["0.1 %"]["parts missing"] == str(2995 - 300)
    assert float(rows["5 % (review_at)"]["threshold"]) < 299


def test_the_promise_the_rejects_to_come_and_the_lots_are_told(run: Path) -> None:
    lines = list(told(with_parts(run, 300)))
    assert lines[0] == "Of good parts like these 300, at most 1 % are rejected, with 95 % confidence."
    (expected,) = re.findall(r"Of the next 1,000 good parts ([\d.]+) will be rejected on average", lines[3])
    assert float(expected) == pytest.approx(1000 / 301, abs=0.1)
    assert lines[4].startswith("2 lots") and lines[6].startswith("  lot b: 30 parts")


def test_changed_budgets_are_kept_and_work_at_once(run: Path) -> None:
    with_parts(run, 300)
    changed = change_verdict(run, reject_at=0.05, review_at=0.2)
    again = RunFolder(run).read_verdicts()
    assert again == changed and (again.settings.reject_at, again.settings.review_at) == (0.05, 0.2)
    assert again.decide(298.0).word == "NG"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reject_at": 0.2}, "at least reject_at"),  # crossed
        ({"review_at": 0.001}, "at least reject_at"),
        ({"reject_at": 0.0}, "reject_at"),
        ({"review_at": 1.0}, "review_at"),
        ({"confidence": float("nan")}, "confidence"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_budgets_that_do_not_fit_are_refused_and_change_nothing(values: dict[str, float], said: str, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(SettingsError, match=said):
        change_verdict(run, **values)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_the_verdict_file_of_another_run_is_refused_by_every_reader(run: Path, tmp_path: Path) -> None:
    text = (run / "verdict.toml").read_text()
    (run / "verdict.toml").write_text(re.sub(r'run = "\w+"', 'run = "0123456789abcdef"', text))
    with pytest.raises(RunError, match=r"verdict\.toml is of another run, 0123456789abcdef"):
        change_verdict(run)
    (run / "verdict.toml").unlink()
    assert change_verdict(run).settings.reject_at == 0.01  # the usual budgets


def test_an_edited_file_is_obeyed_and_a_mistyped_one_is_named(run: Path) -> None:
    file = run / "verdict.toml"
    text = file.read_text()
    file.write_text(text.replace("review_at = 0.05", "review_at = 0.4"))
    assert change_verdict(run).settings.review_at == 0.4
    file.write_text(text.replace("review_at", "reveiw_at"))
    with pytest.raises(SettingsError, match="did you mean 'review_at'"):
        change_verdict(run)


def test_the_command_prints_table_promise_and_escapes(ask: Ask, run: Path, tmp_path: Path) -> None:  # noqa: F811
    for number in range(3):
        defect = plate(300 + number)
        defect[20:32, 24:40] = (250, 20, 20)
        save(tmp_path / "defects" / f"{number}.png", defect)
    answer = ask("verdict", run, "--review-at", 0.5, "--defects", tmp_path / "defects")
    assert answer.code == 0
    assert "Of good parts like these 6, at most 40 % are rejected, with 95 % confidence; 293 more" in answer.out
    assert "Of 3 defective samples 0 % (0 % to 71 %) pass as OK, with 95 % confidence." in answer.out
    assert "50 % (review_at)" in answer.out
    assert RunFolder(run).read_verdicts().settings.review_at == 0.5


def test_too_few_good_parts_are_one_clear_line(ask: Ask, run: Path) -> None:  # noqa: F811
    with_parts(run, 4)
    refused(ask("verdict", run), "at least 5 good parts, found 4")
    refused(ask("verdict", run, "--reject-at", 2), "reject_at")
    shown = ask("show", run).out
    assert "promise: Every part is REVIEW: 4 good parts to compare with." in shown


def test_two_thresholds_never_cross(run: Path) -> None:
    for n in (6, 20, 60, 400):
        limits = with_parts(run, n).limits()
        assert limits.review.threshold <= limits.reject.threshold
        assert np.isfinite([one.threshold for one in limits]).all()
