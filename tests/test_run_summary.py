"""`threecad show`: what a run is, from its record alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from threecad.errors import RunError
from threecad.run_summary import run_summary
from threecad.runs import RunFolder


def told(run: Path) -> dict[str, str]:
    """The lines by what they tell."""
    return dict(line.strip().split(": ", 1) for line in run_summary(run))


def edited(run: Path, copy: Path, **changes: object) -> Path:
    """A copy of a run whose record says something else."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | changes))
    return copy


def test_a_finished_run_tells_method_choices_data_and_versions(fitted: Path) -> None:
    record, lines = json.loads((fitted / "run.json").read_text()), told(fitted)
    assert lines["run"] == str(fitted)
    assert lines["method"].startswith("padim (PaDiM: a Patch Distribution")
    assert lines["categories"] == "plate"
    assert lines["state"].startswith("finished after 0:0")
    assert "threecad evaluate" in lines["scores"]
    assert lines["precision"] == "float32"
    assert lines["backbone"] == "resnet10t.c3_in1k, random weights"
    assert lines["kept aside"] == "6 good images"
    assert lines["good parts"] == "6 of plate (scored by the fit: hold-out)"
    assert lines["promise"] == RunFolder(fitted).read_verdicts().sentences()[0]
    assert record["data_fingerprint"][:12] in lines["data"] and "0 left out" in lines["data"]
    assert f"threecad {record['version']}" in lines["versions"] and "torch " in lines["versions"]


def test_settings_that_differ_from_the_preset_are_told_with_both_values_and_no_others(fitted: Path) -> None:
    lines = told(fitted)
    assert lines["preset"] == "paper, but for 5 settings"
    assert lines["method.features"] == "12 (the preset: 100)"
    assert lines["data.holdout"] == "0.5 (the preset: 0.0)"
    assert {name for name in lines if "." in name} == {
        "data.holdout",
        "method.backbone",
        "method.features",
        "method.image_size",
        "method.weights",
    }


def test_an_unfinished_run_says_how_to_go_on(fitted: Path, tmp_path: Path) -> None:
    run = edited(fitted, tmp_path / "run", finished=False)
    lines = told(run)
    assert lines["state"].startswith("not finished; go on with `threecad fit padim ")
    assert "--resume" in lines["state"] and str(run / "settings.toml") in lines["state"]
    assert "scores" not in lines


def test_a_run_that_was_scored_says_where(fitted: Path, tmp_path: Path) -> None:
    run = edited(fitted, tmp_path / "run")
    (run / "scores.json").write_text("{}")
    assert told(run)["scores"] == str(run / "scores.json")


def test_a_run_of_a_method_or_preset_of_another_version_is_shown_as_far_as_it_goes(
    fitted: Path, tmp_path: Path
) -> None:
    other = told(edited(fitted, tmp_path / "other", method="supernet"))
    assert other["method"] == "supernet, which this version does not have"
    assert "cannot be compared" in other["preset"]
    assert "cannot be compared" in told(edited(fitted, tmp_path / "slow", preset="slow"))["preset"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json"):
        run_summary(tmp_path)


def test_what_the_good_parts_chose_is_told_with_its_evidence(fitted: Path, tmp_path: Path) -> None:
    assert "chosen by good parts" not in told(fitted)  # PaDiM chooses nothing
    run = edited(fitted, tmp_path / "run", choices=["they lie still: 3 % of the map"])
    assert told(run)["chosen by good parts"] == "they lie still: 3 % of the map"
