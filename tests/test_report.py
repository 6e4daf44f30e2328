"""Overlays that point at the right pixels, and a page that says what scores.json says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from threecad.errors import DataError
from threecad.overlay import COLOURS, LINE, Scale, colour, outlined, overlay, side_by_side
from threecad.report import page
from threecad.report.album import Part, choose, is_mistake
from threecad.report.curves import precision_recall, roc, training_curves
from threecad.report.page import judged, report_run
from threecad.report.sheet import GAP, MARGIN, PANEL, Maps, compose
from threecad.runs import RunFolder
from threecad.verdicts import AREAS_PX, GoodPart, GoodScores, Verdicts, Word

SCALE = Scale(low=1.0, threshold=2.0, high=4.0)


def test_colours_grow_brighter_from_black_to_pale_yellow() -> None:
    luminance = COLOURS @ (0.2126, 0.7152, 0.0722)
    assert COLOURS.shape == (256, 3)
    assert (np.diff(luminance) > 0).all()
    assert luminance[0] < 5 and luminance[-1] > 240


def test_what_is_usual_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, np.full((16, 20), 0.9, np.float32), SCALE), image)


def test_a_defect_is_coloured_and_has_a_line_just_around_it() -> None:
    image = np.full((16, 20, 3), 100, np.uint8)
    anomaly_map = np.zeros((16, 20), np.float32)
    anomaly_map[5:9, 6:12] = 4.0
    shown = overlay(image, anomaly_map, SCALE)
    line = (shown == LINE).all(axis=2)
    expected = np.zeros((16, 20), bool)
    expected[4:10, 5:13] = True
    expected[5:9, 6:12] = False
    np.testing.assert_array_equal(line, expected)
    inside = shown[5:9, 6:12]
    assert (inside == inside[0, 0]).all()
    assert inside[0, 0, 0] > 200 and inside[0, 0, 2] < 200  # towards pale yellow
    assert (shown[:4] == 100).all()


def test_a_line_is_wider_on_a_larger_image_and_the_image_itself_is_not_drawn_upon() -> None:
    image = np.zeros((1024, 1024, 3), np.uint8)
    region = np.zeros((1024, 1024), bool)
    region[500:510, 500:510] = True
    drawn = (outlined(image, region) == LINE).all(axis=2)
    assert drawn.sum() == 18 * 18 - 10 * 10
    assert not image.any()


def test_one_scale_serves_all_maps_of_a_run() -> None:
    verdicts = of_scores(np.linspace(10, 20, 101))
    scale = Scale.of_good(verdicts)
    assert scale is not None
    assert (scale.low, scale.threshold) == (pytest.approx(15.0), verdicts.limits().region.threshold)
    assert scale.high > scale.threshold
    assert Scale.of_good(of_scores([])) is None
    alike = Scale.of_good(of_scores([3.0] * 9))
    assert alike is not None and alike.low < alike.threshold < alike.high


def test_a_map_alone_is_scaled_by_itself_even_if_it_is_flat() -> None:
    flat = np.full((4, 4), 7.0, np.float32)
    assert (Scale.of_map(flat).apply(flat) == 0).all()
    peak = flat.copy()
    peak[1, 2] = 9.0
    assert Scale.of_map(peak).apply(peak).max() == 1.0


def test_four_panels_lie_side_by_side() -> None:
    image = np.full((10, 12, 3), 90, np.uint8)
    mask, anomaly_map = np.zeros((10, 12), np.uint8), np.full((10, 12), 0.5, np.float32)
    mask[2, 3] = 1
    anomaly_map[2, 3] = 3.0
    whole = side_by_side(image, mask, anomaly_map, SCALE, gap_px=2)
    assert whole.shape == (10, 4 * 12 + 3 * 2, 3)
    np.testing.assert_array_equal(whole[:, :12], image)
    assert (whole[2, 14 + 3] == 255).all() and (whole[3, 14 + 3] == 30).all()
    np.testing.assert_array_equal(whole[:, 28:40], colour(anomaly_map, SCALE))
    assert (whole[1, 42 + 3] == LINE).all() and (whole[2, 42 + 3] == 90).all()


def test_curves_equal_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 12, 80).astype(float), rng.random(80) < 0.4
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc(scores, labels), np.stack([false, true], axis=1), atol=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    ours = precision_recall(scores, labels)
    np.testing.assert_allclose(ours[::-1], np.stack([recall, precision], axis=1)[:-1], atol=1e-12)


def part(score: float, is_defect: bool, limit: float = 499.5) -> Part:
    verdict: Word = "NG" if score > limit else "OK"
    return Part(f"{score}.png", "plate", "dent" if is_defect else "good", is_defect, score, None, verdict, b"")


def of_scores(scores: list[float] | np.ndarray) -> Verdicts:
    parts = (GoodPart(part=str(n), score=s, peaks=(s,) * len(AREAS_PX)) for n, s in enumerate(scores))
    return Verdicts(GoodScores(parts={"plate": tuple(parts)}))


def test_all_mistakes_are_shown_before_an_even_choice_of_the_others() -> None:
    parts = [part(float(n), is_defect=n >= 500) for n in range(1000)]
    parts += [part(100.5, True), part(900.5, False)]  # missed, false alarm
    chosen = choose(parts, most=20)
    assert len(chosen) == 20
    assert [p.score for p in chosen] == sorted((p.score for p in chosen), reverse=True)
    assert {p.score for p in chosen if is_mistake(p)} == {100.5, 900.5}
    assert chosen[0].score == 999.0 and chosen[-1].score == 0.0


def test_verdicts_are_those_of_the_run_or_it_is_confessed_that_they_are_not() -> None:
    parts = [part(score, score > 2) for score in (1.0, 2.0, 3.0, 4.0)]
    shown, promises = judged(parts, of_scores(np.arange(20.0)))
    assert shown == parts
    assert promises[0].startswith("Of good parts like these 20, at most 14 % are rejected, with 95 % confidence")
    shown, (confession,) = judged(parts, of_scores([]))
    assert [one.verdict for one in shown] == ["OK", "OK", "NG", "NG"]
    assert "no honest choice" in confession


def test_what_is_set_aside_is_no_mistake() -> None:
    missed, alarm = part(1.0, True), part(900.0, False)
    assert is_mistake(missed) and is_mistake(alarm)
    assert not is_mistake(replace(missed, verdict="REVIEW")) and not is_mistake(replace(alarm, verdict="REVIEW"))


class References(HTMLParser):
    """Everything that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_the_page_needs_nothing_else_and_says_what_scores_json_says(tree: Path, tmp_path: Path, fitted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    scores = report_run(run, tree, file=run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    references = References(text)
    assert all(reference.startswith(("data:image/jpeg;base64,", "#part-")) for reference in references.found)
    assert not {"script", "link", "iframe"} & set(references.tags)
    assert "url(" not in text and "@import" not in text
    headline = re.findall(r"<div>([\w -]+)<b>([\d.]+)<small>", text)
    keys = ("i_auroc", "p_auroc", "p_pro", "p_ap")
    assert headline == [
        (title, f"{100 * scores[key]:.1f}")
        for title, key in zip(("I-AUROC", "P-AUROC", "P-PRO pooled", "AP"), keys, strict=True)
    ]
    assert text.count("data:image/jpeg") == 8 + 1  # the parts, and the sheet
    (promise, *_) = RunFolder(run).read_verdicts().sentences()
    assert promise in text and "6 good parts" in text  # in words, and in the plot of their scores
    shown = [float(score) for score in re.findall(r"<figcaption><b>([-\d.e+]+)</b>", text)]
    assert shown == sorted(shown, reverse=True) and len(shown) == 8
    assert RunFolder(run).scores_file.exists()


def test_maps_of_other_runs_stand_beside_its_own_on_the_page_a_row_each(
    tree: Path, tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Maps]] = []
    monkeypatch.setattr(page, "compose", lambda rows: drawn.append(rows) or compose(rows))
    run, other = tmp_path / "run", tmp_path / "another"
    for folder in (run, other):
        shutil.copytree(fitted, folder)
    report_run(run, tree, file=tmp_path / "page.html", beside=[other])
    (rows,) = drawn
    assert list(rows) == ["PaDiM", "PaDiM\nanother"]
    ours, theirs = rows.values()
    assert list(ours) == list(theirs) == [f"plate/{number:06d}" for number in range(4)]
    for part in ours:  # the same network, whose map is shown at the image's own size
        assert theirs[part]["map"].shape == (48, 64) and ours[part]["map"].shape == (64, 64)
        assert theirs[part]["map"].max() == pytest.approx(ours[part]["map"].max(), rel=0.1)
    assert "Maps side by side" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_of_another_part_is_refused_beside_before_anything_is_scored(
    tree: Path, tmp_path: Path, fitted: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(fitted, other)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"categories": ["screw"]}))
    with pytest.raises(DataError, match="has learnt 'screw' and says nothing of 'plate'"):
        report_run(fitted, tree, file=tmp_path / "page.html", beside=[other])
    assert not (tmp_path / "page.html").exists()


def test_where_nobody_has_marked_the_defects_the_sheet_shows_the_image_darkened(tmp_path: Path) -> None:
    part = {"image": np.full((64, 64, 3), 90, np.uint8), "map": np.eye(64, dtype=np.float32)}
    truth = np.asarray(compose({"PaDiM": {"plate/0": part}}))[PANEL + GAP + PANEL // 2, MARGIN + PANEL // 2]
    assert (truth == 30).all()


def test_a_page_without_masks_and_without_good_scores_still_stands(tree: Path, tmp_path: Path, fitted: Path) -> None:
    shutil.rmtree(tree / "plate" / "ground_truth")
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    RunFolder(run).write_verdicts(of_scores([]))
    report_run(run, tree, file=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<div>P-AUROC<b>–</b></div>" in text
    assert "no honest choice" in text
    assert "nan" not in text.lower().split()


@pytest.mark.slow
def test_the_demo_leaves_everything_it_promises(tmp_path: Path, embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from threecad import demo
    from threecad.errors import RunError

    for name, value in {"TRAIN": 10, "GOOD": 2, "EACH": 1, "STEPS": 2, "BATCH": 2}.items():
        monkeypatch.setattr(demo, name, value)
    titles: list[str] = []

    def counting(title: str) -> object:
        titles.append(title)
        return lambda done, total: None

    made = demo.run_demo(tmp_path / "demo", counting=counting)
    out = tmp_path / "demo"
    assert made.report == out / "report.html" and made.report.stat().st_size > 50_000
    assert (out / "run" / "scores.json").exists()
    assert len(list((out / "predictions" / "maps").rglob("*.tiff"))) == made.scores["n_good"] + made.scores["n_defect"]
    assert {"drawing parts", "decoding"} < set(titles)
    with pytest.raises(RunError, match="rm -r"):
        demo.run_demo(out, counting=counting)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").touch()
    with pytest.raises(RunError, match="files already"):
        demo.run_demo(tmp_path / "own", counting=counting)


def test_training_curves_tell_each_phase_and_term_of_the_log_and_many_steps_are_averaged(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    lines = [f"joint,{step},0.001,recovery,{1000 / step:.6g}" for step in range(1, 1001)]
    log.write_text("\n".join(["phase,step,rate,term,value", *lines, "late,1,0.1,bce,0.5"]) + "\n")
    joint, late = training_curves(log)
    assert (joint["phase"], joint["steps"], list(joint["paths"])) == ("joint", 1000, ["recovery"])
    assert joint["paths"]["recovery"].count("L") == 199
    assert joint["paths"]["recovery"].startswith("M0.00,0.00L")
    assert (late["phase"], late["steps"]) == ("late", 1)
    assert training_curves(tmp_path / "none.csv") == []


def test_rows_of_a_sheet_are_as_high_as_its_parts_are() -> None:
    flat = {"image": np.full((30, 90, 3), 90, np.uint8), "map": np.eye(30, 90, dtype=np.float32)}
    sheet = compose({"PaDiM": {"plate/0": flat, "plate/1": flat}})
    assert sheet.width == MARGIN + 2 * (PANEL + GAP)
    assert sheet.height < 3 * PANEL / 2


def test_a_sheet_shows_parts_in_their_own_shape_whatever_shape_the_network_sees() -> None:
    seen = {"image": np.full((64, 64, 3), 90, np.uint8), "map": np.eye(64, dtype=np.float32)}
    wide = {**seen, "size": np.array([460, 1130])}
    drawn = np.asarray(compose({"UniAD": {"screw/0": wide}}))[:PANEL, MARGIN : MARGIN + PANEL]
    rows, columns = ((drawn == 90).all(axis=2).sum(axis=axis).max() for axis in (0, 1))
    assert columns == PANEL and rows == round(PANEL * 460 / 1130)
