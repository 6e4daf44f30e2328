"""A plan of methods, categories and seeds: read, run, resumed, and turned into tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from threecad.benchmark.plan import read_plan
from threecad.benchmark.run import run_plan
from threecad.benchmark.tables import tables
from threecad.errors import DataError, RunError, SettingsError

PLAN = """
data = "{data}"
methods = ["padim"]
seeds = [0, 1]
backbone = "resnet10t.c3_in1k"

[settings.method]
weights = "random"
image_size = 64
features = 12

[settings.training]
precision = "float32"
"""


def write_plan(folder: Path, data: Path, text: str = PLAN) -> Path:
    file = folder / "plan.toml"
    file.write_text(text.format(data=data.as_posix()), encoding="utf-8")
    return file


def silent(title: str) -> Callable[..., None]:
    return lambda *arguments: None


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory, common_tree: Path) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("THREECAD_CACHE", str(folder / "cache"))
        run_plan(read_plan(write_plan(folder, common_tree)), folder / "out", counting=silent, watching=silent)
    return folder


def test_every_job_leaves_one_row_and_a_run_that_loads(benchmark: Path) -> None:
    rows = sorted((benchmark / "out" / "rows").rglob("*.json"))
    assert [row.relative_to(benchmark / "out" / "rows").as_posix() for row in rows] == [
        "padim/plate/0.json",
        "padim/plate/1.json",
    ]
    assert [json.loads(row.read_text())["seed"] for row in rows] == [0, 1]
    assert (benchmark / "out" / "runs" / "padim" / "plate" / "0" / "detector.safetensors").is_file()


def test_what_is_finished_is_skipped_and_what_is_gone_is_run_again(benchmark: Path, common_tree: Path) -> None:
    plan = read_plan(write_plan(benchmark, common_tree))
    row = benchmark / "out" / "rows" / "padim" / "plate" / "1.json"
    before = json.loads(row.read_text())
    row.unlink()
    outcome = run_plan(plan, benchmark / "out", counting=silent, watching=silent)
    assert (outcome.done, outcome.skipped) == (["padim/plate/1"], ["padim/plate/0"])
    assert json.loads(row.read_text()) == before


def test_tables_show_every_method_and_category_with_mean_and_spread_over_seeds(benchmark: Path) -> None:
    text = tables(benchmark / "out")
    line = next(line for line in text.splitlines() if "PaDiM" in line)
    assert line.startswith("| E-b | PaDiM |") and line.count("±") == 2
    rows = [json.loads(row.read_text()) for row in (benchmark / "out" / "rows").rglob("*.json")]
    assert f"{100 * sum(row['p_auroc'] for row in rows) / 2:.1f}" in line
    assert "resnet10t.c3_in1k" in text and "64×64" in text


def test_rows_of_other_settings_are_kept_apart(benchmark: Path, common_tree: Path) -> None:
    other = read_plan(write_plan(benchmark, common_tree, PLAN.replace("features = 12", "features = 8")))
    with pytest.raises(RunError, match="rows would not be comparable"):
        run_plan(other, benchmark / "out", counting=silent, watching=silent)


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path, common_tree: Path) -> None:
    text = PLAN.replace("features = 12", "").replace('["padim"]', '["padim", "rd"]').replace("[0, 1]", "[0]")
    text += "\n[override.padim.method]\nfeatures = 9999\n\n[override.rd.training]\nsteps = 1\nbatch = 2\n"
    plan = read_plan(write_plan(tmp_path, common_tree, text))
    outcome = run_plan(plan, tmp_path / "out", counting=silent, watching=silent)
    assert outcome.done == ["rd/plate/0"]
    assert "expected at most" in outcome.failed["padim/plate/0"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (('["padim"]', '["padin"]'), SettingsError, "did you mean 'padim'"),
        (("seeds =", "seedz ="), SettingsError, "did you mean 'seeds'"),
        (("features =", "feature ="), SettingsError, "did you mean 'features'"),
        (("seeds =", 'categories = ["plat"]\nseeds ='), DataError, "did you mean 'plate'"),
    ],
)
def test_a_plan_is_checked_before_anything_runs(
    tmp_path: Path, common_tree: Path, change: tuple[str, str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        read_plan(write_plan(tmp_path, common_tree, PLAN.replace(*change)))


def test_tables_of_a_folder_without_rows_say_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="threecad benchmark"):
        tables(tmp_path)
