"""Tables from rows: the paper's cells, groups, spreads, best values and differences, in three formats."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.rows import read_rows
from threecad.benchmark.sheet import draw_sheet
from threecad.benchmark.tables import all_tables
from threecad.data.catalog import DATASETS
from threecad.errors import RunError, SettingsError
from threecad.report.sheet import GAP, MARGIN, PANEL

Plant = Callable[..., Path]

KEY = {"code": "1", "settings": "s", "weights": "w", "textures": "", "budget": "", "data": "d", "categories": ["a"]}


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes the row of a job and gives its file."""

    def write(
        method: str = "padim",
        category: str = "a",
        seed: int = 0,
        *,
        folder: str = "out",
        variant: str = "",
        selection: str = "last",
        data_set: str = "parts",
        key: dict[str, Any] | None = None,
        **scores: float | None,
    ) -> Path:
        metrics = dict.fromkeys(("p_auroc", "p_ap", "i_auroc", "p_pro", "p_pro_per_image"), 0.5)
        row = {
            **metrics,
            "n_vanished": 0,
            **scores,
            "method": method,
            "category": category,
            "seed": seed,
            "preset": "quick",
            "steps": 1,
            "backbone": None,
            "image_size": [64, 64],
            "evaluation_size": [64, 64],
            "precision": "float32",
            "texture_source": None,
            "duration_s": 1.0,
            "hardware": "processor",
            "threads": 1,
            "version": "0",
            "libraries": {"torch": "2"},
            "benchmark": {
                "variant": variant,
                "selection": selection,
                "data_set": data_set,
                "key": {**KEY, "categories": [category], **(key or {})},
            },
        }
        name = "-".join([method, variant, selection, data_set, category, str(seed)])
        file = tmp_path / folder / "rows" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row), encoding="utf-8")
        return file

    return write


def printed(folder: Path, *more: Path, format: str = "markdown") -> str:
    return write_tables(read_rows([folder, *more]), format)


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if start in line)


def test_cells_hold_two_metrics_and_the_mean_over_categories(plant: Plant, tmp_path: Path) -> None:
    plant(category="a", p_auroc=0.912, p_ap=0.3)
    plant(category="b", p_auroc=0.812, p_ap=0.1)
    text = printed(tmp_path / "out")
    assert line_of(text, "| group") == "| group | method | a | b | mean |"
    assert line_of(text, "PaDiM") == "| E-b | PaDiM | 91.2 / 30.0 | 81.2 / 10.0 | 86.2 / 20.0 |"


def test_several_seeds_give_mean_and_spread(plant: Plant, tmp_path: Path) -> None:
    for seed, score in enumerate((0.7, 0.8, 0.9)):
        plant(seed=seed, p_auroc=score)
    assert "80.0 ± 10.0 / 50.0 ± 0.0" in line_of(printed(tmp_path / "out"), "PaDiM")


def test_a_defect_that_vanishes_is_counted_once_whatever_the_number_of_seeds(plant: Plant, tmp_path: Path) -> None:
    for seed in range(3):
        plant(category="a", seed=seed, n_vanished=1)
        plant(category="b", seed=seed, n_vanished=2)
    assert line_of(printed(tmp_path / "out"), "| PaDiM | quick").endswith("| 3 |")


def test_methods_stand_in_the_papers_groups_and_cfrg_last(plant: Plant, tmp_path: Path) -> None:
    for method in ("cfrg", "crad", "draem", "padim"):
        plant(method)
    table = all_tables(read_rows([tmp_path / "out"]))[0]
    assert [line.labels[0] for line in table.lines] == ["E-b", "A-syn", "U-ni", "E-b"]
    assert table.lines[-1].labels[1].startswith("CFRG")


def test_what_was_not_run_is_empty_and_has_no_mean(plant: Plant, tmp_path: Path) -> None:
    plant("padim", "a")
    plant("rd", "a")
    plant("rd", "b")
    assert line_of(printed(tmp_path / "out"), "PaDiM").endswith("|  |  |")


def test_a_metric_without_a_value_leaves_a_dash_beside_the_other(plant: Plant, tmp_path: Path) -> None:
    plant(p_auroc=0.9, p_ap=None)
    assert "90.0 / –" in printed(tmp_path / "out")


def test_the_best_of_each_column_is_bold_and_ties_are_bold_together(plant: Plant, tmp_path: Path) -> None:
    plant("padim", p_auroc=0.90001)
    plant("rd", p_auroc=0.90004)
    plant("rdpp", p_auroc=0.8)
    text = printed(tmp_path / "out")
    assert "**90.0**" in line_of(text, "PaDiM") and "**90.0**" in line_of(text, "| RD |")
    assert "**80.0**" not in text


def test_one_category_has_no_mean(plant: Plant, tmp_path: Path) -> None:
    plant()
    assert line_of(printed(tmp_path / "out"), "| group") == "| group | method | a |"


def test_a_single_line_has_no_best(plant: Plant, tmp_path: Path) -> None:
    plant()
    assert "**5" not in printed(tmp_path / "out")


def test_the_papers_categories_have_its_number_and_the_difference_beneath(plant: Plant, tmp_path: Path) -> None:
    plant("cfrg", "Iron_Stator", p_auroc=0.869, p_ap=0.083)
    plant("cfrg", "mine")
    text = printed(tmp_path / "out")
    assert line_of(text, "| group") == "| group | method | IS | mine | mean |"
    assert line_of(text, "*paper*") == "|  | *paper* | 85.9 / 9.3 |  |  |"
    assert line_of(text, "*difference*") == "|  | *difference* | +1.0 / −1.0 |  |  |"


def test_the_papers_mean_stands_only_under_all_of_its_categories(plant: Plant, tmp_path: Path) -> None:
    for category in DATASETS["3cad"].categories:
        plant("rd", category.name)
    assert line_of(printed(tmp_path / "out"), "*paper*").endswith("| 92.3 / 8.7 |")


def test_p_pro_stands_in_both_definitions_each_by_its_name(plant: Plant, tmp_path: Path) -> None:
    plant(p_pro=0.1, p_pro_per_image=0.9)
    first, second = (t for t in printed(tmp_path / "out").split("\n**") if "P-PRO" in t.splitlines()[0])
    assert "P-PRO per image (the paper's)" in first and "/ 90.0" in first
    assert "P-PRO pooled" in second and "/ 10.0" in second


def test_two_data_sets_stand_side_by_side(plant: Plant, tmp_path: Path) -> None:
    plant(folder="one", data_set="first", p_auroc=0.9)
    plant(folder="two", data_set="second", category="b", p_auroc=0.6)
    text = printed(tmp_path / "one", tmp_path / "two")
    table = text.partition("**first / second, means over categories**")[2]
    assert "| 90.0 / 60.0 |" in line_of(table, "PaDiM")


def test_ablations_show_score_change_and_whether_the_papers_sign_is_ours(plant: Plant, tmp_path: Path) -> None:
    plant("cfrg", variant="full", p_auroc=0.9, i_auroc=0.8, p_pro_per_image=0.7, p_ap=0.2)
    plant("cfrg", variant="WRC", p_auroc=0.8, i_auroc=0.9, p_pro_per_image=0.6, p_ap=0.3)
    table = printed(tmp_path / "out").partition("**Ablations")[2]
    assert line_of(table, "WRC").startswith("| a | WRC | 3 of 4 | 80.0 / −10.0 / −6.8 | 90.0 / +10.0 / −4.3 |")
    assert "| a | full |" in table


@pytest.mark.parametrize("change", [-0.0001, 0.0, 0.0001])
def test_a_change_that_rounds_to_nothing_has_no_sign(plant: Plant, tmp_path: Path, change: float) -> None:
    plant(variant="full", p_ap=0.5)
    plant(variant="other", p_ap=0.5 + change)
    assert line_of(printed(tmp_path / "out"), "| a | other |").endswith("| 50.0 / 0.0 |")


def test_a_row_that_is_not_its_presets_says_in_which_settings(plant: Plant, tmp_path: Path) -> None:
    pure, departed, unknown = plant("padim"), plant("rd"), plant("cfrg")
    for file, found in ((pure, ["method.backbone"]), (departed, ["method.epochs", "method.weights", "training.batch"])):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"departures": found}))
    assert "departures" not in json.loads(unknown.read_text())
    text = printed(tmp_path / "out").partition("| but for |")[2]
    assert [line_of(text, name).split(" | ")[2] for name in ("PaDiM", "RD", "CFRG")] == ["–", "epochs batch", "?"]


def test_rows_chosen_on_the_test_images_stand_in_a_table_of_their_own(plant: Plant, tmp_path: Path) -> None:
    plant(p_auroc=0.8)
    plant(selection="best_on_test", p_auroc=0.9)
    titles = [table.title for table in all_tables(read_rows([tmp_path / "out"]))]
    assert len(titles) == 6
    assert all("chosen on the test images" in title for title in titles[3:])


def test_rows_of_two_machines_merge_and_what_both_have_counts_once(plant: Plant, tmp_path: Path) -> None:
    plant(folder="one", seed=0, p_auroc=0.7)
    plant(folder="two", seed=0, p_auroc=0.7)
    plant(folder="two", seed=1, p_auroc=0.9)
    assert "80.0 ± 14.1" in line_of(printed(tmp_path / "one", tmp_path / "two"), "PaDiM")


@pytest.mark.parametrize("what", ["code", "settings", "weights", "data"])
def test_rows_that_were_made_otherwise_do_not_mix(plant: Plant, tmp_path: Path, what: str) -> None:
    plant(folder="one", seed=0)
    plant(folder="two", seed=1, key={what: "another"})
    with pytest.raises(RunError, match=f"differ in {what}"):
        printed(tmp_path / "one", tmp_path / "two")


def test_one_model_of_two_categories_does_not_mix_with_one_of_three(plant: Plant, tmp_path: Path) -> None:
    plant("uniad", "a", folder="one", key={"categories": ["a", "b"]})
    plant("uniad", "c", folder="two", key={"categories": ["a", "b", "c"]})
    with pytest.raises(RunError, match="differ in categories"):
        printed(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "padim"}', "", '{"categories": {"a": 3}}', "nul\0l"])
def test_a_damaged_row_is_named_with_what_to_do(plant: Plant, tmp_path: Path, content: str) -> None:
    file = plant()
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RunError) as caught:
        printed(tmp_path / "out")
    assert str(file) in str(caught.value) and "run the benchmark again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_rows_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="threecad benchmark"):
        printed(tmp_path)


def test_csv_has_a_line_a_number_in_full(plant: Plant, tmp_path: Path) -> None:
    plant(p_auroc=0.91234, category='with, comma "and" quotes')
    lines = list(csv.DictReader(printed(tmp_path / "out", format="csv").splitlines()))
    first = lines[0]
    assert (first["column"], first["metric"], first["value"]) == ('with, comma "and" quotes', "p_auroc", "91.2340")
    assert first["label"] == "E-b PaDiM"


def test_latex_escapes_names_and_marks_the_best(plant: Plant, tmp_path: Path) -> None:
    plant("padim", "my_part & co", p_auroc=0.9)
    plant("rd", "my_part & co", p_auroc=0.8)
    text = printed(tmp_path / "out", format="latex")
    assert r"my\_part \& co" in text and r"\textbf{90.0}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    for line in text.splitlines():
        if line.startswith("E-b"):
            assert line.count("&") == 2 and line.endswith(r"\\")


def test_variants_of_which_the_paper_says_nothing_have_no_column_for_it(plant: Plant, tmp_path: Path) -> None:
    for variant, p_ap in (("full", 0.5), ("without-copies", 0.4)):
        plant(variant=variant, p_ap=p_ap)
    (table,) = [one for one in all_tables(read_rows([tmp_path / "out"])) if one.title.startswith("Ablations")]
    assert table.title == "Ablations of PaDiM: score / change against full"
    assert table.labels == ("category", "variant")
    score, change = table.lines[0].cells[-1]
    assert score is not None and change is not None
    assert (round(score.mean, 1), round(change.mean, 1)) == (40.0, -10.0)


def test_tables_are_printed_without_loading_torch_and_only_they_go_to_standard_output(
    plant: Plant, tmp_path: Path
) -> None:
    plant()
    code = "import sys; from threecad.cli import app; app(sys.argv[1:], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "tables", str(tmp_path / "out"), "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("table,label,kind,column,metric,value,std,best")


def sheet_rows(folder: Path, method: str, parts: int, low: float = 0.0) -> None:
    """The maps of a method on some parts: brighter from part to part."""
    arrays = {}
    for number in range(parts):
        arrays[f"a/{number:06d}/image"] = np.full((64, 64, 3), 90, np.uint8)
        arrays[f"a/{number:06d}/mask"] = np.eye(64, dtype=np.uint8)
        arrays[f"a/{number:06d}/map"] = np.full((64, 64), low + number, np.float32)
    file = folder / "maps" / method / "a" / "0.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, **arrays)


def test_a_sheet_has_one_colour_scale_for_each_method(tmp_path: Path) -> None:
    sheet_rows(tmp_path, "padim", 3)
    sheet_rows(tmp_path, "rd", 3, low=1000.0)
    draw_sheet([tmp_path], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    step = PANEL + GAP
    centres = [[pixels[row * step + PANEL // 4, MARGIN + c * step + PANEL // 2] for c in range(3)] for row in (2, 3)]
    assert [value.sum() for value in centres[0]] == sorted(value.sum() for value in centres[0])
    assert not np.array_equal(centres[0][1], centres[0][2])  # not each map on a scale of its own
    assert np.array_equal(centres[0], centres[1])  # each method's own range of values


def test_a_sheet_shows_the_chosen_methods_as_pdf_too(tmp_path: Path) -> None:
    sheet_rows(tmp_path, "padim", 2)
    sheet_rows(tmp_path, "rd", 2)
    draw_sheet([tmp_path], tmp_path / "sheet.pdf", ["rd"])
    assert (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("file", "methods", "says"),
    [("sheet.gif", [], ".png or .pdf"), ("sheet.png", ["padm"], "did you mean 'padim'")],
)
def test_a_sheet_that_cannot_be_says_why(tmp_path: Path, file: str, methods: list[str], says: str) -> None:
    sheet_rows(tmp_path, "padim", 1)
    with pytest.raises(SettingsError, match=says):
        draw_sheet([tmp_path], tmp_path / file, methods)


def test_damaged_maps_are_named(tmp_path: Path) -> None:
    sheet_rows(tmp_path, "padim", 1)
    file = tmp_path / "maps" / "padim" / "a" / "0.npz"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(RunError, match="damaged"):
        draw_sheet([tmp_path], tmp_path / "sheet.png")
