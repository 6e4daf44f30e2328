"""What the paper prints, transcribed: it agrees with itself but for the misprints that are listed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from threecad.benchmark.paper import FULL, MEAN, ablations, means, paper, printed_mean, printed_score, scores_on_3cad
from threecad.data.catalog import DATASETS
from threecad.methods import METHODS

ROUNDING = 0.05 + 1e-9
"""Half of the last printed digit, ties included: the paper rounds them both ways."""


def disagreements() -> Iterator[tuple[str, float, float]]:
    """Where a printed number is not what other printed numbers give: place, printed, computed."""
    scores = scores_on_3cad()
    for (method, category, metric), printed in scores.items():
        if category == MEAN:
            parts = [v for (m, c, k), v in scores.items() if (m, k) == (method, metric) and c != MEAN]
            table = "table3" if metric in paper()["table3"]["metrics"] else "table4"
            yield f"{table} {method} mean {metric}", printed, statistics.fmean(parts)
    for variant, gains in paper()["gains"].items():
        for metric, printed in gains.items():
            yield f"gains {variant} {metric}", printed, ablations()[FULL, metric] - ablations()[variant, metric]
    for method, gains in paper()["gains_over"].items():
        for metric, printed in gains.items():
            gain = scores["cfrg", MEAN, metric] - scores[method, MEAN, metric]
            yield f"gains_over {method} {metric}", printed, gain


def test_every_mean_and_gain_agrees_with_the_cells_but_for_the_listed_misprints() -> None:
    limits = {"table3": ROUNDING, "table4": ROUNDING, "gains": 1e-6, "gains_over": 1e-6}
    found = {
        where: (printed, computed)
        for where, printed, computed in disagreements()
        if abs(printed - computed) > limits[where.split()[0]]
    }
    listed = {entry["where"]: (entry["printed"], entry["computed"]) for entry in paper()["misprints"]}
    assert found.keys() == listed.keys()
    for where, (printed, computed) in found.items():
        assert printed == listed[where][0]
        assert computed == pytest.approx(listed[where][1], abs=0.006)


def test_table_5_repeats_the_means_of_tables_3_and_4() -> None:
    table = paper()["table5"]
    for method, text in table["rows"].items():
        for metric, cell in zip(table["columns"], text.split(), strict=True):
            if cell != "-":
                assert float(cell.split("/")[1]) == scores_on_3cad()[method, MEAN, metric], (method, metric)


def test_table_6_ends_with_the_means_of_tables_3_and_4() -> None:
    for metric in paper()["table6"]["columns"]:
        assert ablations()[FULL, metric] == scores_on_3cad()["cfrg", MEAN, metric]


def test_table_1_adds_up_and_is_what_the_catalogue_checks_copies_against() -> None:
    table = paper()["table1"]
    rows = {name: [int(cell) for cell in text.split()[:5]] for name, text in table["rows"].items()}
    assert [sum(column) for column in zip(*rows.values(), strict=True)] == [int(c) for c in table["all"].split()[:5]]
    for name, (train, test, good, defect, types) in rows.items():
        known = DATASETS["3cad"].find(name)
        assert known is not None
        assert (train, good, defect, types) == (known.train, known.good, known.defect, known.types)
        assert test == good + defect


def test_table_2_counts_3cad_as_table_1_does() -> None:
    train, _, good, defect, _ = (int(cell) for cell in paper()["table1"]["all"].split()[:5])
    assert paper()["table2"]["rows"]["3CAD"].split()[:2] == [str(train + good), str(defect)]


def test_every_method_with_a_line_in_the_paper_is_in_the_registry() -> None:
    assert set(paper()["table3"]["rows"]) == set(paper()["table4"]["rows"]) <= set(METHODS)


def test_a_score_is_found_by_the_name_of_the_folder() -> None:
    assert printed_score("cfrg", "Iron_Stator", "p_auroc") == 85.9
    assert printed_score("padim", "Iron_Stator", "p_ap") is None
    assert printed_score("cfrg", "magnetic_tile", "p_auroc") is None


def test_a_mean_is_the_papers_only_over_all_categories_of_its_data_set() -> None:
    everything = frozenset(category.name for category in DATASETS["3cad"].categories)
    assert printed_mean("rd", everything, "p_pro_per_image") == 75.9
    assert printed_mean("rd", everything - {"Iron_Stator"}, "p_pro_per_image") is None
    mvtec = frozenset(category.name for category in DATASETS["mvtec_ad"].categories)
    assert printed_mean("cfrg", mvtec, "p_ap") == means()["mvtec_ad", "cfrg", "p_ap"] == 73.4
