"""`threecad data` as a person meets it: findings, lists, JSON, tables, trees, and exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import plate, save
from threecad.cli import main
from threecad.data.readers import exclude, read_category

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs `threecad data` with these arguments: exit code, output, and what was said beside it."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["threecad", "data", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def test_verify_lists_what_to_leave_out_and_the_list_does_it(ask: Ask, tree: Path, tmp_path: Path) -> None:
    plate_ = tree / "plate"
    shutil.copy(plate_ / "test" / "good" / "000.png", plate_ / "train" / "good" / "002.png")
    listed = tmp_path / "leave_out.txt"
    code, out, err = ask("verify", tree, "--write-exclusions", listed)
    assert code == 0 and "warning: " in out
    assert err.splitlines() == ["0 errors, 1 warning, 0 notes", f"1 image to leave out, listed in {listed}"]
    assert len(exclude(read_category(tree), listed).train) == 11


def test_verify_gives_json_that_says_all(ask: Ask, tree: Path) -> None:
    (tree / "plate" / "train" / "good" / "003.png").write_text("no image")
    code, out, _ = ask("verify", tree, "--json")
    content = json.loads(out)
    assert code == 2
    assert content["counts"] == {"error": 1, "warning": 0, "note": 0}
    (finding,) = content["findings"]
    assert (finding["severity"], finding["path"]) == ("error", "plate/train/good/003.png")
    assert finding["leave_out"] == ["plate/train/good/003.png"]


def test_verify_looks_at_parts_and_at_the_evaluation_s_size_where_it_is_asked(ask: Ask, tree: Path) -> None:
    code, out, _ = ask("verify", tree, "--part", r"(\d+)\.png", "--evaluation-size", 2)
    assert code == 0
    assert "part '000' on one side, found 1 of its images among training, 2 among test images" in out
    code, out, err = ask("verify", tree, "--part", "(")
    assert (code, out) == (2, "") and "expected a regular expression" in err


def test_stats_prints_both_tables_and_writes_the_figures(ask: Ask, tree: Path, tmp_path: Path) -> None:
    code, out, err = ask("stats", tree, "--figures", tmp_path / "figures")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["Category", "Normal", "Abnormal", "MDI", "MDT"] in lines and ["plate", "16", "4", "✗", "-"] in lines
    assert "area_ratio.svg" in err and (tmp_path / "figures" / "aspect_ratio.csv").is_file()
    assert json.loads(ask("stats", tree, "--json")[1])["categories"][0]["train"] == 12


def test_images_of_a_line_camera_are_allowed_by_an_option(ask: Ask, tree: Path) -> None:
    for command in ("verify", "stats"):
        code, out, err = ask(command, tree, "--max-pixels", 3071)
        assert code == 2 and "--set data.max_pixels=3072 allows it" in out + err
        assert ask(command, tree, "--max-pixels", 3072)[0] == 0


def test_import_writes_a_tree_that_verify_accepts(ask: Ask, tmp_path: Path) -> None:
    parts = tmp_path / "covers"
    for number in range(16):
        save(parts / f"{number:02}.png", plate(number))
    for number in (3, 7):
        shape = {"label": "dent", "shape_type": "rectangle", "points": [[10, 10], [30, 20]]}
        (parts / f"{number:02}.json").write_text(json.dumps({"imagePath": f"{number:02}.png", "shapes": [shape]}))
    code, out, err = ask("import", parts, "--out", tmp_path / "data")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and "data verify" in err
    assert ["covers", "train", "good", "11"] in rows and ["covers", "test", "dent", "2"] in rows
    assert ask("verify", tmp_path / "data")[:2] == (0, "")
    code, out, err = ask("import", parts, "--out", tmp_path / "data")
    assert (code, out) == (2, "") and "expected a new or an empty folder" in err


def test_import_of_a_shape_that_marks_nothing_is_one_line_and_leaves_nothing(ask: Ask, tmp_path: Path) -> None:
    save(tmp_path / "covers" / "1.png", plate(1))
    shape = {"label": "dent", "shape_type": "circle", "points": [[10, 10], [10, 10]]}
    (tmp_path / "covers" / "1.json").write_text(json.dumps({"imagePath": "1.png", "shapes": [shape]}))
    code, out, err = ask("import", tmp_path / "covers", "--out", tmp_path / "data")
    assert (code, out) == (2, "") and "shape 1 ('dent'): expected a circle" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "data").exists()
