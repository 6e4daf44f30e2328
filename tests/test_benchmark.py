"""A plan of methods, categories, seeds and variants: read, run, resumed, and turned into tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from conftest import plate, save
from engine_tasks import PLAN
from threecad.benchmark.keys import code_version, with_keys
from threecad.benchmark.plan import Job, packaged_plans, read_plan
from threecad.benchmark.rows import read_rows
from threecad.benchmark.run import Report, run_plan
from threecad.benchmark.sheet import draw_sheet
from threecad.data.catalog import DATASETS
from threecad.data.readers import list_categories
from threecad.engines import Ended, attempt
from threecad.errors import DataError, RunError, SettingsError, ThreeCADError


def write_plan(folder: Path, data: Path, text: str = PLAN) -> Path:
    file = folder / "plan.toml"
    file.write_text(text.replace("{data}", data.as_posix()), encoding="utf-8")
    return file


def run(folder: Path, data: Path, text: str = PLAN, **changes: object) -> Report:
    return run_plan(read_plan(write_plan(folder, data, text), **changes), folder / "out")


def names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Jobs run where the test runs, which saves each one the loading of torch; test_engines.py has the processes."""

    def here(function: Callable[[Job], object], jobs: Sequence[Job], engine: object) -> Iterator[Ended]:
        return (attempt(function, index, job) for index, job in enumerate(jobs))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("threecad.benchmark.run.map_tasks", here)
        yield


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory, common_tree: Path) -> Path:
    """A finished benchmark in `out`: two seeds of PaDiM on `plate`."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("THREECAD_CACHE", str(folder / "cache"))
        run(folder, common_tree)
    return folder


@pytest.mark.slow
def test_every_job_leaves_one_row_and_a_run_that_loads(benchmark: Path) -> None:
    out = benchmark / "out"
    assert names(out / "rows") == ["padim/plate/0", "padim/plate/1"]
    assert [row.seed for row in read_rows([out])] == [0, 1]
    assert len(list((out / "runs").rglob("detector.safetensors"))) == 2


@pytest.mark.slow
def test_tables_in_every_format_and_a_sheet_lie_beside_the_rows(benchmark: Path) -> None:
    from PIL import Image

    out = benchmark / "out"
    assert "± " in (out / "tables.md").read_text(encoding="utf-8")
    assert (out / "tables.csv").is_file() and (out / "tables.tex").is_file()
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert sheet.width > 4 * 256 and sheet.height > 3 * 192  # four plates of 48×64 px, in their own shape
        assert sheet.height < 3 * 256


@pytest.mark.slow
def test_what_a_kill_left_half_written_among_rows_and_maps_is_no_row_and_no_map(
    benchmark: Path, tmp_path: Path, common_tree: Path
) -> None:
    shutil.copytree(benchmark / "out", tmp_path / "out")
    for place in (
        "rows/padim/plate/.threecad-a/new.json",
        "maps/padim/plate/.threecad-b/new.npz",
        ".threecad-c/new.md",
    ):
        (tmp_path / "out" / place).parent.mkdir()
        (tmp_path / "out" / place).write_text("half a fi")
    assert len(read_rows([tmp_path / "out"])) == 2  # `threecad tables` reads past it
    draw_sheet([tmp_path / "out"], tmp_path / "sheet.png")
    report = run(tmp_path, common_tree)
    assert (len(report.skipped), report.superseded) == (2, [])
    assert not list((tmp_path / "out").rglob(".threecad-*"))


@pytest.mark.slow
def test_what_is_finished_is_skipped_and_what_is_gone_is_run_again(benchmark: Path, common_tree: Path) -> None:
    row = benchmark / "out" / "rows" / "padim" / "plate" / "1.json"
    before = json.loads(row.read_text())
    row.unlink()
    report = run(benchmark, common_tree)
    assert (report.done, report.skipped) == (["padim/plate/1"], ["padim/plate/0"])
    assert json.loads(row.read_text()) == before


@pytest.mark.slow
def test_rows_of_other_settings_are_set_aside_and_come_back_when_they_are_asked_for(
    benchmark: Path, common_tree: Path
) -> None:
    out = benchmark / "out"
    before = (out / "rows" / "padim" / "plate" / "0.json").read_text()
    other = run(benchmark, common_tree, PLAN.replace("features = 12", "features = 8").replace("[0, 1]", "[0]"))
    assert sorted(other.superseded) == ["padim/plate/0", "padim/plate/1"]
    assert names(out / "rows") == ["padim/plate/0"]
    assert {row.scores["settings"]["method"]["features"] for row in read_rows([out])} == {8}
    again = run(benchmark, common_tree)
    assert again.done == []
    assert (out / "rows" / "padim" / "plate" / "0.json").read_text() == before


@pytest.mark.slow
def test_a_damaged_row_is_set_aside_and_made_anew(benchmark: Path, common_tree: Path) -> None:
    row = benchmark / "out" / "rows" / "padim" / "plate" / "0.json"
    before = json.loads(row.read_text())
    row.write_text('{"half')
    report = run(benchmark, common_tree)
    assert (report.superseded, report.done) == (["padim/plate/0"], ["padim/plate/0"])
    assert json.loads(row.read_text()) == before


@pytest.mark.slow
def test_a_job_that_was_killed_before_its_run_was_described_starts_again(benchmark: Path, common_tree: Path) -> None:
    out = benchmark / "out"
    (out / "rows" / "padim" / "plate" / "0.json").unlink()
    for run_folder in (out / "runs" / "padim" / "plate").glob("0-*"):
        (run_folder / "run.json").unlink()
    assert run(benchmark, common_tree).done == ["padim/plate/0"]


@pytest.mark.slow
def test_a_job_that_was_interrupted_under_other_conditions_starts_again(benchmark: Path, common_tree: Path) -> None:
    out = benchmark / "out"
    row = out / "rows" / "padim" / "plate" / "0.json"
    before = json.loads(row.read_text())
    row.unlink()
    for record in (out / "runs" / "padim" / "plate").glob("0-*/run.json"):
        described = json.loads(record.read_text())
        record.write_text(json.dumps(described | {"finished": False, "threads": 999}))
    assert run(benchmark, common_tree).done == ["padim/plate/0"]
    assert json.loads(row.read_text())["p_auroc"] == before["p_auroc"]


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_the_others_and_leaves_its_reason(tmp_path: Path, common_tree: Path) -> None:
    text = PLAN.replace("features = 12", "").replace('["padim"]', '["padim", "rd"]').replace("[0, 1]", "[0]")
    text += "\n[override.padim.method]\nfeatures = 9999\n\n[override.rd.training]\nsteps = 1\nbatch = 2\n"
    report = run(tmp_path, common_tree, text)
    assert report.done == ["rd/plate/0"]
    assert "expected at most" in report.failed["padim/plate/0"]
    reason = tmp_path / "out" / "failures" / "padim" / "plate" / "0.txt"
    assert "expected at most" in reason.read_text(encoding="utf-8")


@pytest.mark.slow
def test_variants_stand_in_rows_of_their_own_and_give_table_6(tmp_path: Path, common_tree: Path) -> None:
    text = PLAN.replace("[0, 1]", "[0]") + "\n[variants.full]\n[variants.narrow.method]\nfeatures = 4\n"
    run(tmp_path, common_tree, text)
    assert names(tmp_path / "out" / "rows") == ["padim+full/plate/0", "padim+narrow/plate/0"]
    assert "Ablations of PaDiM" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_best_state_on_the_test_images_is_scored_where_that_is_asked_for(tmp_path: Path, common_tree: Path) -> None:
    text = PLAN.replace("features = 12", "").replace('["padim"]', '["rd"]').replace("[0, 1]", "[0]")
    text += "steps = 4\nbatch = 2\n"
    run(tmp_path, common_tree, text)
    run(tmp_path, common_tree, text, selection="best_on_test")
    last, best = (
        json.loads((tmp_path / "out" / "rows" / line / "plate" / "0.json").read_text())
        for line in ("rd", "rd+best_on_test")
    )
    assert (last["selection"], best["selection"]) == ("last", "best_on_test")
    assert best["i_auroc"] + best["p_auroc"] >= last["i_auroc"] + last["p_auroc"]
    assert 0 < best["selected_at"] <= 1
    tables = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert tables.count("epoch chosen on the test images") == 3


@pytest.mark.slow
def test_a_budget_of_minutes_becomes_steps_once(tmp_path: Path, common_tree: Path) -> None:
    text = PLAN.replace("features = 12", "").replace('["padim"]', '["rd"]').replace("[0, 1]", "[0]")
    text = text.replace("seeds", "budget = { minutes = 0.02 }\nseeds") + "batch = 2\n"
    run(tmp_path, common_tree, text)
    row = json.loads((tmp_path / "out" / "rows" / "rd" / "plate" / "0.json").read_text())
    (kept,) = (tmp_path / "out" / "runs").rglob("*.budget.json")
    assert row["steps"] == json.loads(kept.read_text())["steps"] >= 1


def test_a_key_changes_with_settings_data_and_seed_and_not_with_the_place_of_the_data(tmp_path: Path) -> None:
    def key(root: Path, text: str = PLAN) -> dict[str, object]:
        return with_keys(read_plan(write_plan(tmp_path, root, text)))[0].key

    for root in (tmp_path / "one", tmp_path / "two"):
        for number in range(3):
            save(root / "part" / "train" / "good" / f"{number}.png", plate(number))
    first = key(tmp_path / "one")
    assert first == key(tmp_path / "two")
    assert first["code"] == code_version()
    assert key(tmp_path / "one", PLAN.replace("12", "8"))["settings"] != first["settings"]
    assert key(tmp_path / "one", PLAN.replace("[0, 1]", "[7]"))["seed"] == 7
    save(tmp_path / "two" / "part" / "test" / "good" / "0.png", plate(9))
    assert key(tmp_path / "two")["data"] != first["data"]


def test_a_method_of_all_categories_is_run_again_when_they_are_others(tmp_path: Path) -> None:
    for category in ("a", "b"):
        save(tmp_path / "data" / category / "train" / "good" / "0.png", plate(0))
    text = 'data = "{data}"\nmethods = ["uniad"]\nbackbone = "embedded"\n'
    both, one = (
        with_keys(read_plan(write_plan(tmp_path, tmp_path / "data", text), categories=categories))
        for categories in (("a", "b"), ("a",))
    )
    assert both[0].name == one[0].name == "uniad/all/0"
    assert both[0].key != one[0].key


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (('["padim"]', '["padin"]'), SettingsError, "did you mean 'padim'"),
        (("seeds =", "seedz ="), SettingsError, "did you mean 'seeds'"),
        (("features =", "feature ="), SettingsError, "did you mean 'features'"),
        (("seeds =", 'categories = ["plat"]\nseeds ='), DataError, "did you mean 'plate'"),
        (("[settings.training]", "[settings.trainin]"), SettingsError, "did you mean 'training'"),
        (("[settings.training]", "[variants.a.method]\nfeaturs = 3\n[settings.training]"), SettingsError, r"padim\+a"),
        (("[settings.training]", '[variants."a b"]\n[settings.training]'), SettingsError, "name of a variant"),
        (("seeds = [0, 1]", "seeds = []"), SettingsError, "seeds"),
        (("seeds =", "budget = { steps = 5, minutes = 1 }\nseeds ="), SettingsError, "either steps or minutes"),
        (("seeds =", 'selection = "best"\nseeds ='), SettingsError, "best_on_test"),
        (('data = "{data}"', 'data = "gone"'), DataError, "no such folder"),
        (('data = "{data}"', ""), SettingsError, "--data ROOT"),
        (("seeds =", "seeds"), SettingsError, "TOML"),
    ],
)
def test_a_plan_is_checked_before_anything_runs(
    tmp_path: Path, common_tree: Path, change: tuple[str, str], error: type[ThreeCADError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        read_plan(write_plan(tmp_path, common_tree, PLAN.replace(*change)))
    assert "plan.toml" in str(caught.value) and str(caught.value).count("\n") <= 1


def test_a_plan_that_is_neither_a_file_nor_packaged_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'paper-3cad'"):
        read_plan("paper-3cat")
    with pytest.raises(SettingsError, match="expected the file of a plan or the name of a packaged one"):
        read_plan(Path("gone") / "plan.toml")


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, common_tree: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="choose another --out"):
        run(tmp_path, common_tree)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_folder_that_a_kill_has_left_before_anything_was_written_is_used(tmp_path: Path, common_tree: Path) -> None:
    (tmp_path / "out" / ".threecad-1234").mkdir(parents=True)
    text = PLAN.replace("[0, 1]", "[0]").replace("features = 12", "features = 9999")
    assert list(run(tmp_path, common_tree, text).failed) == ["padim/plate/0"]


def test_two_benchmarks_do_not_work_in_one_folder(tmp_path: Path, common_tree: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="not a POSIX system")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("{}")
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another benchmark is at work"):
            run(tmp_path, common_tree)


@pytest.mark.slow
def test_the_command_ends_with_2_and_one_line_where_the_plan_can_be_mended(tmp_path: Path, common_tree: Path) -> None:
    plan = write_plan(tmp_path, common_tree, PLAN.replace('"padim"', '"padin"'))
    command = [sys.executable, "-m", "threecad", "benchmark", str(plan), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'padim'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_textures_of_a_plan_are_looked_for_beside_it(tmp_path: Path, common_tree: Path) -> None:
    save(tmp_path / "textures" / "one.png", plate(0))
    text = PLAN + '\n[settings.data]\ntextures = "textures"\n'
    (first, *_) = read_plan(write_plan(tmp_path, common_tree, text)).jobs()
    assert Path(first.settings["data"]["textures"]) == tmp_path / "textures"


@pytest.mark.parametrize(
    ("name", "data_set", "jobs"), [("paper-3cad", "3cad", 9 * 8 + 2), ("paper-mvtec", "mvtec_ad", 7 * 15 + 2)]
)
def test_the_papers_plans_resolve_on_a_copy_of_its_data(tmp_path: Path, name: str, data_set: str, jobs: int) -> None:
    for category in DATASETS[data_set].categories:
        save(tmp_path / category.name / "train" / "good" / "0.png", plate(0))
    plan = read_plan(name, data=tmp_path)
    assert sorted(plan.categories) == list_categories(tmp_path)
    assert len({job.name for job in plan.jobs()}) == jobs


def test_the_ablation_plan_has_the_papers_variants_each_with_one_setting_of_its_own(common_tree: Path) -> None:
    from threecad.benchmark.paper import paper

    plan = read_plan("ablation", data=common_tree, backbone="embedded")
    assert set(plan.variants) == set(paper()["table6"]["rows"])
    full = next(job for job in plan.jobs() if job.variant == "full").settings["method"]
    for job in plan.jobs():
        other = {name for name, value in job.settings["method"].items() if full.get(name) != value}
        assert len(other) == (job.variant != "full"), job.variant


def test_every_packaged_plan_is_known_to_these_tests() -> None:
    assert packaged_plans() == ["ablation", "demo", "paper-3cad", "paper-mvtec"]


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_tables_and_a_sheet(tmp_path: Path) -> None:
    plan = read_plan("demo", settings={"method": {"image_size": 64}})
    small = plan.model_copy(
        update={
            "parts": plan.parts and plan.parts.model_copy(update={"train": 6, "good": 2, "defects": 1, "size": 64}),
            "budget": plan.budget and plan.budget.model_copy(update={"steps": 2}),
        }
    )
    report = run_plan(small, tmp_path / "out")
    assert report.failed == {}
    assert len(report.done) == len(list(plan.jobs()))
    assert re.search(r"\| E-b \| CFRG", (tmp_path / "out" / "tables.md").read_text(encoding="utf-8"))
    assert (tmp_path / "out" / "sheet.png").is_file()
