"""From scores to OK, REVIEW and NG; what is kept of good parts; `verdict.toml`."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import beta

from good_parts import FLAT, of_scores, parts
from threecad.errors import DataError, RunError, SettingsError
from threecad.verdicts import (
    Budget,
    GoodLooks,
    GoodPart,
    GoodScores,
    Verdicts,
    VerdictSettings,
    compare_lots,
    joined_parts,
    limit,
    look,
    per_cent,
    promise,
    read_verdict,
    smallest_share,
)


def test_scores_above_the_thresholds_are_set_aside_or_rejected_with_a_reason() -> None:
    verdicts = of_scores(np.arange(1000.0))
    review, reject, _ = verdicts.limits()
    assert review.threshold < reject.threshold
    assert verdicts.decide(500.0) == ("OK", "")
    assert verdicts.decide(review.threshold) == ("OK", "")  # beyond is strictly above
    for found, word in ((review, "REVIEW"), (reject, "NG")):
        reason = f"scores above all but {found.above} of 1000 good parts"
        assert verdicts.decide(found.threshold + 0.5) == (word, reason)
    assert verdicts.decide(5000.0) == ("NG", "scores above all of 1000 good parts")


def test_twenty_good_parts_reject_what_outscores_them_all_and_say_what_that_costs() -> None:
    verdicts = of_scores(np.arange(20.0))
    assert verdicts.decide(19.5).word == "NG"
    assert verdicts.sentences()[0] == (
        "Of good parts like these 20, at most 14 % are rejected, with 95 % confidence; 279 more are needed for 1 %."
    )


def test_the_promise_in_words() -> None:
    found = limit(np.arange(214.0), Budget(0.01))
    assert promise(found) == (
        "Of good parts like these 214, at most 1.4 % are rejected, with 95 % confidence; 85 more are needed for 1 %."
    )
    assert promise(limit(np.arange(400.0), Budget(0.01))) == (
        "Of good parts like these 400, at most 0.75 % are rejected, with 95 % confidence."
    )
    assert promise(limit(np.arange(100.0), Budget(0.01, rule="average"))) == (
        "Of good parts like these 100, 1 % are rejected on average over calibrations."
    )


def test_what_is_promised_is_never_rounded_down() -> None:
    assert [per_cent(share, up=True) for share in (0.1391, 0.0582, 0.01, 0.00997, 0.00299, 0.0)] == [
        "14 %",
        "5.9 %",
        "1 %",
        "1 %",
        "0.3 %",
        "0 %",
    ]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_what_has_no_finite_score_is_set_aside(score: float) -> None:
    assert of_scores(np.arange(100.0)).decide(score) == ("REVIEW", "the score is not finite")


def test_an_image_in_doubt_is_set_aside_whatever_its_score() -> None:
    verdicts = of_scores(np.arange(100.0))
    for score in (0.0, 1000.0, math.nan):
        assert verdicts.decide(score, doubt="the image is blank") == ("REVIEW", "the image is blank")


@pytest.mark.parametrize("good", [GoodScores(), GoodScores(parts={"plate": parts([1.0, 2.0, 3.0])})])
def test_without_enough_good_parts_nothing_passes(good: GoodScores) -> None:
    verdicts = Verdicts(good)
    n = len(good.scores())
    assert verdicts.decide(0.0) == ("REVIEW", f"only {n} good parts to compare with")
    with pytest.raises(SettingsError, match=f"at least 5 good parts, found {n}"):
        verdicts.limits()
    assert "limits" not in verdicts.as_toml()


def test_categories_are_never_pooled() -> None:
    verdicts = Verdicts(GoodScores(parts={"cap": parts(np.arange(100.0)), "nut": parts(np.arange(100.0) * 1000)}))
    assert (verdicts.decide(5000, "cap").word, verdicts.decide(5000, "nut").word) == ("NG", "OK")
    with pytest.raises(SettingsError, match="2 categories, each with its own thresholds; name one of cap, nut"):
        verdicts.decide(5000)
    with pytest.raises(SettingsError, match="did you mean 'nut'"):
        verdicts.decide(5000, "nutt")


def test_an_image_is_judged_by_score_map_and_look_together() -> None:
    verdicts = of_scores(np.arange(100.0))
    anomaly_map = np.zeros((60, 80), np.float32)
    anomaly_map[10:12, 20:23] = 500.0
    judged = verdicts.judge(500.0, anomaly_map)
    assert judged.verdict == ("NG", "scores above all of 100 good parts")
    assert judged.good_share == smallest_share(100)
    assert [region.box for region in judged.regions] == [(20, 10, 3, 2)]
    calm = verdicts.judge(0.0, np.zeros((60, 80), np.float32))
    assert calm == (("OK", ""), 1.0, [])
    broken = verdicts.judge(0.0, np.full((60, 80), np.nan, np.float32))
    assert broken.verdict == ("REVIEW", "the map is not finite")
    nothing_known = Verdicts(GoodScores()).judge(500.0, anomaly_map)
    assert nothing_known == (("REVIEW", "only 0 good parts to compare with"), None, [])


def test_a_good_part_that_is_not_finite_is_refused_by_name() -> None:
    calm = np.zeros((4, 4), np.float32)
    assert GoodPart.seen("7", 1.0, calm, "monday").peaks == FLAT
    for score, anomaly_map in ((math.nan, calm), (1.0, calm + np.float32("inf"))):
        with pytest.raises(DataError, match="good part '7' is not finite"):
            GoodPart.seen("7", score, anomaly_map)


def test_rejects_to_come_are_what_drawn_good_parts_show() -> None:
    generator = np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        verdicts = of_scores(generator.random(100))
        counts.append(int((generator.random(1000) > verdicts.limits().reject.threshold).sum()))
    told = verdicts.rejects_to_come()
    assert told.value == pytest.approx(1000 / 101)
    assert abs(np.mean(counts) - told.value) < 4 * np.std(counts) / math.sqrt(len(counts))
    assert np.mean([told.low <= count <= told.high for count in counts]) >= 0.95 - 4 * math.sqrt(
        0.95 * 0.05 / len(counts)
    )


def test_escapes_have_the_interval_of_clopper_and_pearson() -> None:
    found = of_scores(np.arange(100.0)).escapes([0.0, 1000.0, 1000.0, 1000.0, math.nan])
    assert (found.n, found.passed.value) == (5, 0.2)
    assert (found.passed.low, found.passed.high) == pytest.approx((beta.ppf(0.025, 1, 5), beta.ppf(0.975, 2, 4)))
    none = of_scores(np.arange(100.0)).escapes([])
    assert math.isnan(none.passed.value) and (none.passed.low, none.passed.high) == (0, 1)


def test_a_part_has_the_highest_values_of_its_images() -> None:
    images = [
        GoodPart(part="7", score=1.0, peaks=(5.0, 2.0, *FLAT[2:])),
        GoodPart(part="8", score=9.0, peaks=(9.0, 9.0, *FLAT[2:])),
        GoodPart(part="7", score=3.0, peaks=(4.0, 3.0, *FLAT[2:])),
    ]
    seven, eight = joined_parts(images)
    assert (seven.part, seven.score, seven.peaks) == ("7", 3.0, (5.0, 3.0, *FLAT[2:]))
    assert eight == images[1]


def test_a_part_of_two_lots_is_refused() -> None:
    with pytest.raises(RunError, match="part '7' is of two lots, 'a' and 'b'"):
        joined_parts([GoodPart(part="7", lot=lot, score=1.0, peaks=FLAT) for lot in "ab"])


def test_calibrating_twice_with_the_same_parts_changes_nothing() -> None:
    once = GoodScores().joined("plate", parts([1.0, 2.0]), {}).joined("plate", parts([1.0, 2.0, 3.0]), {})
    assert once.scores().tolist() == [1.0, 2.0, 3.0]
    assert once.joined("plate", parts([1.0, 2.0, 3.0]), {}) == once


def test_good_parts_of_other_conditions_are_refused_by_name() -> None:
    good = GoodScores(conditions={"weights": "abc", "precision": "float32"}, parts={"plate": parts([1.0])})
    with pytest.raises(RunError, match="precision was float32, is bf16"):
        good.joined("plate", parts([2.0]), {"weights": "abc", "precision": "bf16"})
    assert GoodScores().joined("plate", parts([2.0]), {"precision": "bf16"}).conditions == {"precision": "bf16"}


def test_good_parts_come_back_from_their_file() -> None:
    looks = GoodLooks.of(look(np.full((60, 80, 3), grey, np.uint8)) for grey in (90, 130))
    good = GoodScores().joined("plate", parts([1.0, 0.1 + 0.2], "monday"), {"weights": "abc", "height": 256}, looks)
    assert good.looks["plate"] == looks
    assert GoodScores.from_json(good.model_dump_json()) == good


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"parts": {"plate": [{"part": "1", "score": "high", "peaks": []}]}}', "parts.plate.0.score"),
        ('{"parts": {"plate": [{"part": "1", "score": NaN, "peaks": []}]}}', "parts.plate.0.score"),
        ('{"format": 2}', "format 2, this version reads 1"),
    ],
)
def test_a_broken_file_of_good_parts_is_refused(text: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        GoodScores.from_json(text)


def test_lots_that_differ_are_told_from_lots_that_do_not() -> None:
    generator = np.random.default_rng(0)
    monday, tuesday, late = (generator.normal(size=60) for _ in range(3))
    alike = compare_lots([*parts(monday, "monday"), *parts(tuesday, "tuesday")])
    differ = compare_lots([*parts(monday, "monday"), *parts(tuesday, "tuesday"), *parts(late + 3, "wednesday")])
    assert alike is not None and differ is not None
    assert alike.p_value > 0.001 > differ.p_value
    assert [(lot.name, lot.n) for lot in differ.rows] == [("monday", 60), ("tuesday", 60), ("wednesday", 60)]
    assert differ.rows[2].above_others > 0.5
    assert compare_lots(parts(monday)) is None  # no lots are known
    same = compare_lots([*parts([1.0] * 5, "a"), *parts([1.0] * 5, "b")])
    assert same is not None and same.p_value == 1


def test_a_verdict_file_says_budgets_thresholds_and_their_promises() -> None:
    verdicts = of_scores(np.arange(214.0), review_at=0.1, least_area_px=9)
    text = verdicts.as_toml()
    assert read_verdict(text, verdicts.good.stamp) == verdicts.settings
    for line in ("format = 1", "review_at = 0.1", "n = 214", "reject_above = 213.0", "reject_promised = 0.013901"):
        assert line in text.splitlines()


def test_budgets_can_be_changed_by_hand_and_thresholds_cannot() -> None:
    verdicts = of_scores(np.arange(214.0))
    edited = verdicts.as_toml().replace("reject_at = 0.01", "reject_at = 0.03").replace("= 213.0", "= 9000.0")
    settings = read_verdict(edited, verdicts.good.stamp)
    assert settings.reject_at == 0.03
    assert Verdicts(verdicts.good, settings).limits().reject.threshold < 213


def test_the_verdict_file_of_another_run_is_refused() -> None:
    mine, other = (GoodScores(conditions={"weights": weights}) for weights in ("mine", "other"))
    with pytest.raises(RunError, match="is of another run"):
        read_verdict(Verdicts(other).as_toml(), mine.stamp)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("review_at = 0.005", "expected review_at to be at least reject_at"),
        ("reject_at = 0.0", "verdict.reject_at"),
        ("reject_at = 1.0", "verdict.reject_at"),
        ("review_at = nan", "verdict.review_at"),
        ("confidence = 1.5", "verdict.confidence"),
        ("least_area_px = 0", "verdict.least_area_px"),
        ('rule = "always"', "verdict.rule"),
        ("reject = 0.01", "unknown setting 'verdict.reject'; did you mean 'reject_at'?"),
        ("reject_at = ", "not a readable TOML file"),
        ("reject_at = true", "verdict.reject_at"),
    ],
)
def test_a_verdict_file_that_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        read_verdict(text, "")


def test_a_verdict_file_of_a_newer_version_is_refused() -> None:
    with pytest.raises(RunError, match="format 2"):
        read_verdict("format = 2", "")


def test_settings_change_one_by_one() -> None:
    assert VerdictSettings().changed(reject_at=0.02, review_at=None) == VerdictSettings(reject_at=0.02)
    with pytest.raises(SettingsError, match=r"review_at to be at least reject_at \(0.2\)"):
        VerdictSettings().changed(reject_at=0.2)


def test_verdicts_need_no_network() -> None:
    heavy = ("torch", "timm", "scipy.stats", "PIL")
    code = f"import sys, threecad.verdicts; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
