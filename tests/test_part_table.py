"""Where several images show one part, the part gets one verdict: that of its worst image."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import threecad
from conftest import plate, save, scratch
from threecad.errors import SettingsError
from threecad.part_table import PartRow, part_rows
from threecad.prediction import predict_files
from threecad.verdicts import GoodPart, GoodScores
from threecad.verdicts.areas import AREAS_PX

VIEWS = r"(p\d+)_"


def row(image: str, verdict: str = "OK", score: str = "1.0", reason: str = "", error: str = "") -> dict[str, str]:
    return {
        "image": image,
        "verdict": verdict,
        "score": score,
        "good_share": "0.5",
        "reason": reason,
        "error": error,
    }


def verdict_of(*rows: dict[str, str], fewest_images: int = 1) -> PartRow:
    (part,) = part_rows(rows, VIEWS, fewest_images)
    return part


def test_a_part_is_what_its_worst_image_is_and_scores_as_its_highest() -> None:
    part = verdict_of(row("a/p1_0.png", "REVIEW", "2.0", "odd"), row("a/p1_1.png", "NG", "9.0", "high"))
    assert (part.part, part.verdict, part.reason, part.image) == ("p1", "NG", "high", "a/p1_1.png")
    assert (part.score, part.images) == ("9.0", 2)
    dark = verdict_of(row("a/p1_0.png", "REVIEW", "0.1", "the image is black"), row("a/p1_1.png", score="3.0"))
    assert (dark.verdict, dark.reason, dark.score) == ("REVIEW", "the image is black", "3.0")


def test_a_part_with_an_image_that_could_not_be_inspected_is_never_ok() -> None:
    broken = row("a/p1_1.png", "", "", error="a/p1_1.png: cut off")
    part = verdict_of(row("a/p1_0.png"), broken)
    assert (part.verdict, part.reason, part.score) == ("REVIEW", "a/p1_1.png: cut off", "1.0")
    assert verdict_of(row("a/p1_0.png", "NG", "9.0"), broken).verdict == "NG"
    assert (verdict_of(broken).verdict, verdict_of(broken).score) == ("REVIEW", "")


def test_a_part_with_fewer_images_than_every_good_part_is_never_ok() -> None:
    part = verdict_of(row("a/p1_0.png"), fewest_images=2)
    assert (part.verdict, part.reason) == ("REVIEW", "1 of the 2 images that good parts have")
    assert verdict_of(row("a/p1_0.png", "NG"), fewest_images=2).verdict == "NG"
    assert verdict_of(row("a/p1_0.png"), row("a/p1_1.png"), fewest_images=2).verdict == "OK"


def test_an_image_of_no_known_part_stands_for_itself_and_is_never_ok() -> None:
    known, unknown = part_rows([row("a/other.png"), row("a/p1_0.png")], VIEWS, 1)
    assert (known.part, known.verdict) == ("p1", "OK")
    assert (unknown.part, unknown.verdict) == ("a/other.png", "REVIEW")
    assert "finds no part" in unknown.reason


def test_the_images_of_a_part_are_counted_once_however_often_they_come() -> None:
    image = GoodPart(part="p1", score=1.0, peaks=(1.0,) * len(AREAS_PX))
    good = GoodScores().joined("plate", [image, image], {})
    assert (good.of()[0].images, good.fewest_images()) == (2, 2)
    assert good.joined("plate", [image, image], {}).fewest_images() == 2
    assert GoodScores().fewest_images() == 1


def test_predict_writes_a_row_a_part_of_a_run_that_knows_parts(tmp_path: Path) -> None:
    for number in range(24):
        save(tmp_path / "good" / f"p{number // 2}_{number % 2}.png", plate(number))
    for view, pixels in enumerate((plate(100), plate(101))):
        save(tmp_path / "new" / f"p100_{view}.png", pixels)
    scratched = plate(200)
    scratched[scratch(0) > 0] //= 4
    save(tmp_path / "new" / "p200_0.png", scratched)
    method = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}
    settings = {"method": method, "data": {"part": VIEWS, "holdout": 0.5}, "training": {"precision": "float32"}}
    threecad.fit("padim", tmp_path / "good", tmp_path / "run", settings=settings)
    summary = predict_files(tmp_path / "run", [tmp_path / "new"], tmp_path / "out", maps=False, overlays=False)
    with (tmp_path / "out" / "parts.csv").open() as stream:
        parts = {line["part"]: line for line in csv.DictReader(stream)}
    assert {name: line["images"] for name, line in parts.items()} == {"p100": "2", "p200": "1"}
    assert parts["p200"]["verdict"] in ("REVIEW", "NG")  # one of its two images is missing
    assert summary.parts.total() == 2


def test_a_run_that_knows_no_parts_leaves_no_table_of_them(fitted: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parts.csv").write_text("of an earlier run")
    image = tree / "plate" / "test" / "good" / "000.png"
    summary = predict_files(fitted, [image], tmp_path / "out")
    assert not (tmp_path / "out" / "parts.csv").exists() and not summary.parts


@pytest.mark.parametrize("pattern", ["(", "p(?P<part>\\d+)_"])
def test_the_pattern_is_that_of_data_part(pattern: str) -> None:
    if pattern == "(":
        with pytest.raises(SettingsError, match="regular expression"):
            part_rows([row("a/p1_0.png")], pattern, 1)
    else:
        assert part_rows([row("a/p1_0.png")], pattern, 1)[0].part == "1"
