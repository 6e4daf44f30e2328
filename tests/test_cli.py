"""What a person at the command line sees: results, refusals of at most three lines, and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import plant, save, scratch
from threecad.cli import main
from threecad.methods import METHODS
from threecad.runs import RunFolder
from threecad.verdicts import GoodScores, Verdicts

SMALL = [
    *("--set", "method.backbone=resnet10t.c3_in1k", "--set", "method.weights=random"),
    *("--set", "method.image_size=64"),
]
TINY = [*SMALL, "--set", "method.features=12"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command line with these arguments in this process."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["threecad", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return Answer(int(stop.value.code or 0), printed.out, printed.err)

    return run


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "threecad", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **environment}
    )


def refused(answer: Answer, *culprits: str) -> None:
    """Exit code 2, and at most three lines that name the culprits."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert re.search(r"^threecad: ", answer.err, re.MULTILINE)
    assert len(answer.err.strip().splitlines()) <= 3, answer.err
    for culprit in culprits:
        assert culprit in answer.err, answer.err


def test_help_answers_without_loading_torch() -> None:
    probe = (
        "import sys; sys.argv = ['threecad', '--help']\n"
        "from threecad.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'pydantic', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "fit", "evaluate", "predict", "data", "methods", "weights"):
        assert f"\n  {command}" in done.stdout


def test_help_off_a_terminal_is_neither_boxed_nor_wrapped(ask: Ask) -> None:
    answer = ask("fit", "--help")
    assert answer.code == 0
    assert not set("│╭─…") & set(answer.out)
    (line,) = (line for line in answer.out.splitlines() if line.lstrip().startswith("--data"))
    assert line.endswith("Data root, category folder, or plain folder of good images.  [required]")


def test_a_misspelt_command_or_option_is_answered_with_the_nearest(ask: Ask) -> None:
    answer = ask("fitt")
    assert answer.code == 2
    assert "'fit'" in answer.err
    answer = ask("fit", "padim", "--categroy", "plate")
    assert answer.code == 2
    assert "--category" in answer.err


def test_methods_lists_every_method_with_its_paper(ask: Ask) -> None:
    lines = ask("methods").out.splitlines()
    assert len(lines) == 1 + len(METHODS)
    assert any(line.startswith("cfrg ") and "3CAD: A Large-Scale" in line and "AAAI 2025" in line for line in lines)


def test_a_fit_leaves_a_run_that_can_be_evaluated(ask: Ask, tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = ask("fit", "padim", "--data", tree, "--out", run, "--seed", 7, *TINY, "--set", "data.holdout=0.25")
    assert answer.code == 0, answer.err
    assert "padim has learnt plate" in answer.out
    assert "bfloat16" not in answer.err and "Warning" not in answer.err
    record = json.loads((run / "run.json").read_text())
    assert (record["seed"], record["scoring"], len(record["holdout"])) == (7, "hold-out", 3)

    answer = ask("evaluate", run, "--data", tree)
    assert answer.code == 0, answer.err
    scores = json.loads((run / "scores.json").read_text())
    header, row = answer.out.splitlines()
    assert header.split()[:3] == ["I-AUROC", "P-AUROC", "P-PRO"]
    assert row.split()[:3] == ["plate", f"{100 * scores['i_auroc']:.1f}", f"{100 * scores['p_auroc']:.1f}"]
    assert (scores["n_good"], scores["n_defect"], scores["category"]) == (4, 4, "plate")


def test_a_quick_fit_of_patchcore_says_what_a_longer_one_would_find(ask: Ask, tree: Path, tmp_path: Path) -> None:
    for preset in ("quick", "paper"):
        answer = ask("fit", "patchcore", "--data", tree, "--out", tmp_path / preset, "--preset", preset, *SMALL)
        assert answer.code == 0, answer.err
        assert ("threecad fit cfrg" in answer.out) == (preset == "quick")


def test_a_settings_file_yields_to_set_and_set_to_a_named_option(ask: Ask, tree: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text("[training]\nseed = 1\nbatch = 3\n[method]\nridge = 0.5\n")
    pairs = ("--set", "training.seed=2", "--set", "method.ridge=0.25")
    answer = ask(
        "fit", "padim", "--data", tree, "--out", tmp_path / "run", "--config", config, *TINY, *pairs, "--seed", 3
    )
    assert answer.code == 0, answer.err
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["training"]["seed"] == 3
    assert settings["training"]["batch"] == 3
    assert settings["method"]["ridge"] == 0.25


def test_paths_in_a_settings_file_are_relative_to_it_and_those_of_set_to_the_current_folder(
    ask: Ask, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "bad.txt").write_text("plate/train/good/000.png\n")
    (folder / "settings.toml").write_text('[data]\nexclude = "bad.txt"\n', encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    fit = ("fit", "padim", "--data", tree, *TINY)
    done = ask(*fit, "--out", tmp_path / "run", "--config", "own/settings.toml")
    assert done.code == 0, done.err
    refused(ask(*fit, "--out", tmp_path / "other", "--set", "data.exclude=bad.txt"), str(tmp_path / "bad.txt"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exclusions"] == ["plate/train/good/000.png"]


def test_the_printed_settings_of_a_method_can_be_used_and_the_run_shown(ask: Ask, tree: Path, tmp_path: Path) -> None:
    printed = ask("settings", "padim", "--preset", "quick")
    assert (printed.code, printed.err) == (0, "")
    config, run = tmp_path / "own.toml", tmp_path / "run"
    config.write_text(printed.out)
    done = ask("fit", "padim", "--data", tree, "--out", run, "--config", config, *TINY)
    assert done.code == 0, done.err
    shown = ask("show", run)
    assert shown.code == 0
    assert re.search(r"preset: quick, but for \d settings\n", shown.out) and "method.image_size: [64, 64]" in shown.out
    refused(ask("show", tree), "run.json")
    refused(ask("settings", "padin"), "'padim'")


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says to be this large, with a few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "truncated", id="truncated"),
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"not a picture\n", "png, jpg, bmp or tif", id="text"),
        pytest.param(png_of(30_000, 30_000), "data.max_pixels=900000000", id="huge"),
    ],
)
def test_a_broken_image_stops_a_fit_and_leaves_nothing(
    ask: Ask, tree: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    image = tree / "plate" / "train" / "good" / "005.png"
    image.write_bytes(image.read_bytes()[:800] if content is None else content)
    run = tmp_path / "run"
    refused(ask("fit", "padim", "--data", tree, "--out", run, *TINY), str(image), reason)
    assert not run.exists()


def test_a_wrong_root_is_refused(ask: Ask, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(ask("fit", "padim", "--data", tmp_path / "nowhere", "--out", run, *TINY), str(tmp_path / "nowhere"))
    (tmp_path / "void").mkdir()
    refused(ask("fit", "padim", "--data", tmp_path / "void", "--out", run, *TINY), str(tmp_path / "void"), "nothing")
    assert not run.exists()


def test_misspelt_names_are_answered_with_the_nearest(ask: Ask, tree: Path, tmp_path: Path) -> None:
    fit = ("--data", tree, "--out", tmp_path / "run")
    refused(ask("fit", "padin", *fit), "padin", "'padim'")
    refused(ask("fit", "padim", *fit, *TINY, "--category", "plte"), "plte", "'plate'")
    refused(ask("fit", "padim", *fit, *TINY, "--set", "training.step=3"), "training.step", "'steps'")
    refused(ask("fit", "padim", *fit, *TINY, "--set", "trainin.steps=3"), "[trainin]", "'training'")
    refused(ask("fit", "padim", *fit, *TINY, "--set", "training.steps=many"), "training.steps", "many")
    refused(ask("fit", "padim", *fit, *TINY, "--set", "steps"), "'steps'", "TABLE.KEY=VALUE")
    refused(ask("fit", "padim", *fit, *TINY, "--preset", "fast"), "training.preset", "fast")
    assert not (tmp_path / "run").exists()


def test_a_mask_without_image_and_an_image_without_mask_are_refused(ask: Ask, tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lost = save(tree / "plate" / "ground_truth" / "scratch" / "999.png", scratch(0))
    refused(ask("fit", "padim", "--data", tree, "--out", run, *TINY), str(lost), "expected an image")
    lost.unlink()
    (tree / "plate" / "ground_truth" / "scratch" / "002.png").unlink()
    bare = tree / "plate" / "test" / "scratch" / "002.png"
    refused(ask("fit", "padim", "--data", tree, "--out", run, *TINY), str(bare), "expected a mask")
    assert not run.exists()


def test_several_categories_and_no_choice_are_refused(ask: Ask, tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "plate", tree / "lid")
    refused(ask("fit", "padim", "--data", tree, "--out", tmp_path / "run", *TINY), "lid, plate", "--category")


def test_missing_weights_name_the_ways_to_bring_them(ask: Ask, tree: Path, tmp_path: Path) -> None:
    answer = ask("fit", "padim", "--data", tree, "--out", tmp_path / "run")
    refused(answer, "resnet18.tv_in1k", "threecad weights fetch", "threecad weights import")
    assert "--preset quick --backbone embedded" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_not_empty_is_refused_and_left_alone(
    ask: Ask, tree: Path, tmp_path: Path, fitted: Path
) -> None:
    mine = tmp_path / "notes"
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    refused(ask("fit", "padim", "--data", tree, "--out", mine, *TINY), str(mine), "--out")
    assert [file.name for file in mine.iterdir()] == ["a.txt"]
    refused(ask("fit", "padim", "--data", tree, "--out", fitted, *TINY), str(fitted), "files already")
    unfinished = edited(fitted, tmp_path / "unfinished", finished=False)
    refused(ask("fit", "padim", "--data", tree, "--out", unfinished, *TINY), str(unfinished), "--resume")


def edited(run: Path, copy: Path, **changes: object) -> Path:
    """A copy of a run folder whose `run.json` says something else."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | changes))
    return copy


def test_a_run_of_another_method_or_version_is_refused(ask: Ask, tree: Path, tmp_path: Path, fitted: Path) -> None:
    newer = edited(fitted, tmp_path / "newer", format=99, version="9.9")
    refused(ask("evaluate", newer, "--data", tree), str(newer), "9.9", "99")
    other = edited(fitted, tmp_path / "other", method="supernet")
    refused(ask("evaluate", other, "--data", tree), str(other), "'supernet'")
    mixed = edited(fitted, tmp_path / "mixed", method="fastflow", finished=False)
    refused(ask("fit", "padim", "--data", tree, "--out", mixed, "--resume", *TINY), "'fastflow'", "'padim'")
    unfinished = edited(fitted, tmp_path / "unfinished", finished=False)
    refused(ask("evaluate", unfinished, "--data", tree), str(unfinished), "not finished")
    damaged = edited(fitted, tmp_path / "damaged", detector_sha256="0")
    refused(ask("predict", damaged, tree, "--out", tmp_path / "out"), "detector.safetensors", "damaged")
    refused(ask("evaluate", tree, "--data", tree), str(tree), "run.json")
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_scored_on_a_part_that_it_has_not_learnt(
    ask: Ask, tree: Path, tmp_path: Path, fitted: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    shutil.copytree(tree / "plate", tree / "lid")
    refused(ask("evaluate", run, "--data", tree, "--category", "lid"), "'plate'", "'lid'")
    refused(ask("evaluate", run, "--data", tree, "--category", "plat"), "plat", "'plate'")
    shutil.rmtree(tree / "plate")
    refused(ask("evaluate", run, "--data", tree), "plate", "lid", str(tree))
    assert not (run / "scores.json").exists()
    answer = ask("evaluate", run, "--data", tree / "lid")  # a category folder is taken whatever it is called
    assert answer.code == 0, answer.err
    assert json.loads((run / "scores.json").read_text())["category"] == "lid"


def test_the_images_that_a_fit_left_out_are_left_out_of_its_scores_wherever_the_list_is_now(
    ask: Ask, tree: Path, tmp_path: Path
) -> None:
    listed, run = tmp_path / "bad.txt", tmp_path / "run"
    listed.write_text("# bad light\nplate/test/good/001.png\nplate/test/scratch/003.png\nplate/train/good/000.png\n")
    settings = [f"data.exclude={listed}", "method.weights=random", "method.image_size=64", "method.features=12"]
    pairs = [word for pair in settings for word in ("--set", pair)]
    done = ask("fit", "padim", "--data", tree, "--out", run, "--backbone", "resnet10t.c3_in1k", *pairs)
    assert done.code == 0, done.err
    listed.unlink()
    for root in (tree, tree / "plate"):
        assert ask("evaluate", run, "--data", root).code == 0
        scores = json.loads((run / "scores.json").read_text())
        assert (scores["n_good"], scores["n_defect"], len(scores["exclusions"])) == (3, 3, 3)


def test_a_category_without_masks_gets_image_metrics_and_is_told_so(
    ask: Ask, tree: Path, tmp_path: Path, fitted: Path
) -> None:
    shutil.rmtree(tree / "plate" / "ground_truth")
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    answer = ask("evaluate", run, "--data", tree)
    assert answer.code == 0
    assert "image metrics only" in answer.err
    scores = json.loads((run / "scores.json").read_text())
    assert scores["p_auroc"] is None and scores["i_auroc"] is not None
    assert answer.out.splitlines()[1].split()[2] == "-"


def test_predict_lists_broken_images_does_the_others_and_exits_with_1(
    ask: Ask, tree: Path, tmp_path: Path, fitted: Path
) -> None:
    (tree / "plate" / "test" / "good" / "001.png").write_bytes(b"")
    answer = ask("predict", fitted, tree / "plate" / "test", "--out", tmp_path / "out")
    assert answer.code == 1
    (line,) = answer.err.strip().splitlines()
    assert "good/001.png" in line
    counts = re.fullmatch(r".*: 8 images: (\d) OK, (\d) REVIEW, (\d) NG, 1 failed\n", answer.out)
    assert counts and sum(map(int, counts.groups())) == 7


def test_predict_of_nothing_is_refused_and_leaves_nothing(ask: Ask, tmp_path: Path, fitted: Path) -> None:
    out, void = tmp_path / "out", tmp_path / "void"
    void.mkdir()
    refused(ask("predict", fitted, void, "--out", out), str(void), "found none")
    refused(ask("predict", fitted, tmp_path / "a.png", "--out", out), str(tmp_path / "a.png"), "found nothing")
    assert not out.exists()


def test_predict_says_how_to_get_verdicts(ask: Ask, tree: Path, tmp_path: Path, fitted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    RunFolder(run).write_verdicts(Verdicts(GoodScores(parts={"plate": ()})))
    answer = ask("predict", run, tree / "plate" / "test" / "good" / "000.png", "--out", tmp_path / "out")
    assert answer.code == 0 and "0 OK, 1 REVIEW, 0 NG" in answer.out
    assert f"threecad calibrate {run} FOLDER" in answer.err


def test_verify_exits_with_2_where_a_fit_would_stop(ask: Ask, tree: Path) -> None:
    assert ask("data", "verify", tree).code == 0
    broken = tree / "plate" / "test" / "good" / "001.png"
    broken.write_bytes(b"")
    answer = ask("data", "verify", tree)
    assert answer.code == 2
    assert (
        answer.out == f"error: {broken}: cannot be read: expected a png, jpg, bmp or tif image, found an empty file\n"
    )
    assert answer.err == "1 error, 0 warnings, 0 notes\n"


def test_stats_prints_table_1_and_the_histograms(ask: Ask, tree: Path) -> None:
    lines = ask("data", "stats", tree).out.splitlines()
    assert lines[0].split("  ")[0] == "Category"
    assert lines[1].split() == ["plate", "12", "8", "4", "4", "1", "48~48", "64~64", "1~1/1~1"]
    assert any(line.startswith("Defect area ratio of 4 images, median ") for line in lines)


def test_the_cache_is_listed_and_cleared(ask: Ask, tree: Path, tmp_path: Path, cache: Path) -> None:
    ask("fit", "padim", "--data", tree, "--out", tmp_path / "run", *TINY)
    assert ask("data", "cache").out.splitlines()[1].split() == ["plate", "images", "12", "64×64", "0.1"]
    assert "MB freed" in ask("data", "cache", "--clear").out
    assert len(ask("data", "cache").out.splitlines()) == 1
    assert not (cache / "pixels").exists()


def test_weights_are_imported_and_listed(ask: Ask, tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), file)
    assert ask("weights", "import", file, "--tag", "resnet18.tv_in1k").code == 0
    assert ask("weights", "list").out.splitlines()[1].startswith("resnet18.tv_in1k ")
    refused(ask("weights", "import", file), "model.safetensors", "--tag TAG")
    refused(ask("weights", "import", file, "--tag", "wide_resnet50_2.tv_in1k"), "does not fit")
    for tag in ("resnet18", "../../x"):
        refused(ask("weights", "import", file, "--tag", tag), "full timm tag", tag)
    save_file({"a": torch.ones(3)}, file)
    refused(ask("weights", "import", file, "--tag", "resnet18.tv_in1k"), "does not fit", "found nothing")
    assert len(ask("weights", "list").out.splitlines()) == 2
    poison = tmp_path / "poison.pth"
    poison.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(ask("weights", "import", poison, "--tag", "resnet18.tv_in1k"), str(poison))


def test_further_processes_of_a_fit_print_nothing(
    ask: Ask, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    refused(ask("fit", "padin", "--data", tree, "--out", tmp_path / "run"), "'padim'")  # set by another program
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = ask("fit", "padin", "--data", tree, "--out", tmp_path / "run")
    assert answer == Answer(2, "", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m threecad methods | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=280, check=False)
    assert done.stderr == ""
    assert done.stdout == "METHOD    "


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    import signal

    run = tmp_path / "run"
    arguments = [
        *(
            "fit",
            "cfrg",
            "--data",
            plant(tmp_path / "data"),
            "--out",
            run,
            "--set",
            "method.backbone=resnet10t.c3_in1k",
        ),
        *(
            "--set",
            "method.weights=random",
            "--set",
            "method.student=resnet10t.c3_in1k",
            "--set",
            "method.image_size=64",
        ),
        *("--set", "training.batch=2", "--set", "training.steps=100000", "--set", "data.textures=procedural"),
    ]
    command = [sys.executable, "-m", "threecad", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 400
        while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "threecad: interrupted; go on with the same command and --resume"
    assert (run / "run.json").exists() and (run / "state.safetensors").exists()
