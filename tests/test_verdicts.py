"""What is unusual among good parts, and what may be promised of it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy.stats import beta

from calibrations import MODELS, SCHEMES, broken, broken_by_exposures, broken_by_lots
from threecad.errors import RunError, SettingsError
from threecad.verdicts import (
    AREAS_PX,
    Budget,
    GoodLooks,
    GoodPart,
    GoodScores,
    Verdicts,
    VerdictSettings,
    area_peaks,
    compare_lots,
    good_share,
    joined_parts,
    limit,
    look,
    parts_needed,
    per_cent,
    plausible,
    promise,
    promised_shares,
    read_verdict,
    regions,
    scores_plot,
    smallest_share,
)

FLAT = (0.0,) * len(AREAS_PX)


def parts(scores: list[float] | np.ndarray, lot: str | None = None) -> tuple[GoodPart, ...]:
    return tuple(
        GoodPart(part=f"{lot}{index}", lot=lot, score=score, peaks=(score,) * len(AREAS_PX))
        for index, score in enumerate(scores)
    )


def of_scores(scores: list[float] | np.ndarray, **settings: float | str) -> Verdicts:
    return Verdicts(GoodScores(parts={"plate": parts(scores)}), VerdictSettings.of(dict(settings)))


# -- shares ----------------------------------------------------------------------------------------------------------


def test_good_share_is_the_share_of_good_parts_that_look_as_odd() -> None:
    good = [1.0, 2.0, 3.0, 4.0]
    assert [good_share(score, good) for score in (5, 4, 2.5, 0)] == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert good_share(1, []) == 1
    assert good_share(5, good) == smallest_share(4)


def test_a_score_that_is_not_a_number_is_no_rarer_than_any_good_part() -> None:
    assert good_share(math.nan, [1.0, 2.0]) == 1


# -- thresholds by rank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "at_most"), [(20, 13.9), (50, 5.8), (100, 2.95), (200, 1.49), (299, 1.00), (1000, 0.30)])
def test_the_bound_of_the_highest_of_n_scores_is_the_known_one(n: int, at_most: float) -> None:
    digits = len(str(at_most).partition(".")[2])
    assert round(100 * promised_shares(n, Budget(0.01))[0], digits) == at_most


def test_promises_are_quantiles_of_the_beta_distribution_of_an_order_statistic() -> None:
    above = np.arange(60)
    assert promised_shares(60, Budget(0.01, 0.9)) == pytest.approx(beta.ppf(0.9, above + 1, 60 - above))
    assert promised_shares(60, Budget(0.01, rule="average")) == pytest.approx(beta.mean(above + 1, 60 - above))


def test_a_budget_takes_the_lowest_threshold_that_keeps_it() -> None:
    scores = np.arange(1000.0)
    found = limit(scores, Budget(0.01))
    assert found.is_met and found.missing == 0
    assert np.sum(scores > found.threshold) == found.above
    assert found.promised <= 0.01 < promised_shares(1000, Budget(0.01))[found.above + 1]


def test_with_too_few_parts_the_threshold_is_the_highest_score_and_says_its_true_bound() -> None:
    found = limit(np.arange(50.0), Budget(0.01))
    assert (found.threshold, found.above, found.is_met, found.missing) == (49.0, 0, False, 249)
    assert found.promised == pytest.approx(1 - 0.05 ** (1 / 50))


@pytest.mark.parametrize("rule", ["bound", "average"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.05, 0.01, 0.001])
def test_as_many_parts_as_are_needed_keep_a_budget_and_one_fewer_does_not(share: float, rule: str) -> None:
    budget = Budget(share, rule=rule)  # type: ignore[arg-type]
    needed = parts_needed(budget)
    assert limit(np.arange(float(needed)), budget).is_met
    if needed > 5:
        assert limit(np.arange(needed - 1.0), budget).missing == 1


def test_the_weaker_rule_needs_fewer_parts_and_is_kept_on_average_only() -> None:
    assert (parts_needed(Budget(0.01)), parts_needed(Budget(0.01, rule="average"))) == (299, 99)


def test_tied_scores_never_reject_more_good_parts_than_distinct_ones() -> None:
    """Nine in ten parts score 0, the others 1: whatever is above the threshold is above it in all parts to come."""
    budget = Budget(0.2)
    generator = np.random.default_rng(0)
    for _ in range(200):
        found = limit((generator.random(60) < 0.1).astype(float), budget)
        exceed = 0.1 if found.threshold < 1 else 0.0
        assert exceed <= found.promised
    assert limit(np.zeros(100), budget).threshold == 0  # and a score of 0 is not above it


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_budget_is_a_share_of_good_parts(share: float) -> None:
    with pytest.raises(SettingsError, match="strictly between 0 and 1"):
        limit(np.arange(50.0), Budget(share))
    with pytest.raises(SettingsError, match="strictly between 0 and 1"):
        parts_needed(Budget(0.01, confidence=share))


def test_of_fewer_than_five_good_parts_no_threshold_is_taken() -> None:
    with pytest.raises(SettingsError, match=r"at least 5 good parts, found 4; calibrate"):
        limit(np.arange(4.0), Budget(0.05))


# -- proof by simulation ---------------------------------------------------------------------------------------------

CALIBRATIONS = 2000
MONTE_CARLO = 4 * math.sqrt(0.05 * 0.95 / CALIBRATIONS)
"""Four standard errors of a share of 5 % counted over so many calibrations."""


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 300])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bounds_break_in_no_more_calibrations_than_they_say(scheme: str, n: int) -> None:
    for share in broken(scheme, "mean", n, [Budget(0.05), Budget(0.01)], CALIBRATIONS):
        assert share <= 0.05 + MONTE_CARLO


def test_the_average_rule_keeps_its_budget_on_average_and_not_in_every_calibration() -> None:
    budget, generator = Budget(0.05, rule="average"), np.random.default_rng(0)
    found = [limit(generator.random(100), budget) for _ in range(CALIBRATIONS)]
    shares = np.array([1 - one.threshold for one in found])
    assert abs(shares.mean() - found[0].promised) < 4 * shares.std() / math.sqrt(CALIBRATIONS)
    assert (shares > found[0].promised).mean() > 1 / 3


def test_closed_forms_that_leave_a_part_out_are_those_of_models_without_it() -> None:
    learnt = np.random.default_rng(0).normal(size=(30, 8))
    for model in MODELS.values():
        without = [model(np.delete(learnt, index, 0)).score(learnt[[index]])[0] for index in range(len(learnt))]
        assert model(learnt).left_out() == pytest.approx(without)


def test_the_simulation_sees_a_broken_promise() -> None:
    """Scores of parts that a model has learnt from are too low, and the bound breaks far more often than it says."""
    generator, count = np.random.default_rng(0), 0
    for _ in range(200):
        model = MODELS["Gaussian"](generator.normal(size=(50, 8)))
        found = limit(model.score(model.parts), Budget(0.05))  # type: ignore[attr-defined]
        count += model.shares_above(np.array([found.threshold]), generator)[0] > found.promised
    assert count / 200 > 0.3


def test_what_counts_is_how_many_lots_were_seen() -> None:
    assert broken_by_lots(100, 100, Budget(0.05), 1000) < 0.1 < broken_by_lots(3, 100, Budget(0.05), 1000)


def test_exposures_are_not_parts() -> None:
    assert broken_by_exposures(1, 100, Budget(0.05), 1000) < 0.1 < broken_by_exposures(5, 100, Budget(0.05), 1000)


# -- verdicts --------------------------------------------------------------------------------------------------------


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


def test_rejects_to_come_are_what_drawn_good_parts_show() -> None:
    generator = np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        verdicts = of_scores(generator.random(100))
        counts.append(int((generator.random(1000) > verdicts.limits().reject.threshold).sum()))
    told = verdicts.rejects_to_come()
    assert told.value == pytest.approx(1000 / 101)
    assert abs(np.mean(counts) - told.value) < 4 * np.std(counts) / math.sqrt(len(counts))
    assert np.mean([told.low <= count <= told.high for count in counts]) >= 0.95 - MONTE_CARLO


def test_escapes_have_the_interval_of_clopper_and_pearson() -> None:
    found = of_scores(np.arange(100.0)).escapes([0.0, 1000.0, 1000.0, 1000.0, math.nan])
    assert (found.n, found.passed.value) == (5, 0.2)
    assert (found.passed.low, found.passed.high) == pytest.approx((beta.ppf(0.025, 1, 5), beta.ppf(0.975, 2, 4)))
    none = of_scores(np.arange(100.0)).escapes([])
    assert math.isnan(none.passed.value) and (none.passed.low, none.passed.high) == (0, 1)


# -- good parts ------------------------------------------------------------------------------------------------------


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
    looks = GoodLooks.of([look(picture()), look(picture(130))])
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


# -- verdict.toml ----------------------------------------------------------------------------------------------------


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


# -- regions ---------------------------------------------------------------------------------------------------------


def test_regions_have_box_area_and_peak_and_the_highest_comes_first() -> None:
    anomaly_map = np.zeros((6, 8), np.float32)
    anomaly_map[1:3, 2:5] = 2.0
    anomaly_map[5, 7] = 9.0
    assert [region.as_json() for region in regions(anomaly_map, 1.0)] == [
        {"box": [7, 5, 1, 1], "area_px": 1, "peak": 9.0},
        {"box": [2, 1, 3, 2], "area_px": 6, "peak": 2.0},
    ]
    assert [region.area_px for region in regions(anomaly_map, 1.0, least_area_px=2)] == [6]
    assert regions(anomaly_map, 9.0) == []


def test_the_peak_of_a_region_is_not_that_of_another_in_its_box() -> None:
    anomaly_map = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 5]], np.float32)
    assert [(region.area_px, region.peak) for region in regions(anomaly_map, 0.5)] == [(1, 5.0), (5, 1.0)]


def test_above_an_areas_peak_there_is_no_region_of_that_area_and_just_below_there_is() -> None:
    anomaly_map = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    for area, peak in zip(AREAS_PX, area_peaks(anomaly_map), strict=True):
        assert not regions(anomaly_map, peak, area)
        if area <= anomaly_map.size:
            assert regions(anomaly_map, float(np.nextafter(np.float32(peak), np.float32(-np.inf))), area)
    assert area_peaks(anomaly_map)[0] == anomaly_map.max()
    assert area_peaks(np.ones((3, 3), np.float32)) == (1.0,) * len(AREAS_PX)


@pytest.mark.parametrize("least_area_px", [1, 4, 10])
def test_no_more_good_parts_have_a_region_than_their_budget(least_area_px: int) -> None:
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(250, 24, 24)).astype(np.float32)
    good = tuple(GoodPart(part=str(index), score=0.0, peaks=area_peaks(one)) for index, one in enumerate(maps[:100]))
    verdicts = Verdicts(GoodScores(parts={"plate": good}), VerdictSettings(region_at=0.1, least_area_px=least_area_px))
    found = verdicts.limits().region
    with_regions = [bool(verdicts.regions(one)) for one in maps]
    assert sum(with_regions[:100]) <= found.above
    assert np.mean(with_regions[100:]) < 0.1 + 4 * math.sqrt(0.1 * 0.9 / 150)


# -- images that cannot show a part ----------------------------------------------------------------------------------


def picture(brightness: float = 120, size: tuple[int, int] = (60, 80), seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(brightness, 20, (*size, 1))
    return np.repeat(noise.clip(0, 255).astype(np.uint8), 3, axis=2)


GOOD_LOOKS = GoodLooks.of(look(picture(115 + seed, seed=seed)) for seed in range(10))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((60, 80, 3), np.uint8), "blank"),
        (np.full((60, 80, 3), 118, np.uint8), "blank"),
        (np.full((60, 80, 3), 255, np.uint8), "blank"),
        (np.where(picture() > 140, 120, 0).astype(np.uint8), "black"),
        (np.where(picture() > 100, 255, 60).astype(np.uint8), "saturated"),
        (picture(60), "darker than every good one"),
        (picture(190), "brighter than every good one"),
        (picture(size=(80, 60)), "80×60 px, good ones are 60×80"),
    ],
)
def test_an_image_that_cannot_show_a_part_says_why(pixels: np.ndarray, said: str) -> None:
    assert said in (plausible(pixels, GOOD_LOOKS) or "")


def test_other_good_images_and_those_with_defects_are_plausible() -> None:
    scratched, stained = picture(seed=20), picture(seed=21)
    scratched[30] = 255
    stained[:30, :40] = 0  # a quarter of the image
    for pixels in (*(picture(110 + seed, seed=seed) for seed in range(11, 20)), scratched, stained):
        assert plausible(pixels, GOOD_LOOKS) is None


def test_good_parts_on_black_and_even_ones_stay_plausible() -> None:
    on_black = np.zeros((60, 80, 3), np.uint8)
    on_black[20:40, 30:50] = picture(size=(20, 20))
    even = np.full((60, 80, 3), 90, np.uint8)
    for pixels in (on_black, even):
        good = GoodLooks.of([look(pixels), look(pixels)])
        assert plausible(pixels, good) is None


def test_sizes_may_vary_as_much_as_those_of_good_images() -> None:
    good = GoodLooks.of([look(picture(size=(60, 80))), look(picture(size=(70, 80)))])
    assert plausible(picture(size=(75, 80)), good) is None
    assert plausible(picture(size=(90, 80)), good) == "the image is 90×80 px, good ones are 60×80 to 70×80"


def test_further_good_images_widen_what_is_plausible() -> None:
    good = GoodScores().joined("plate", parts(np.arange(9.0)), {}, GOOD_LOOKS)
    dim = picture(60)
    assert Verdicts(good).doubt(dim) == "the image is darker than every good one"
    wider = good.joined("plate", [], {}, GoodLooks.of([look(picture(70))]))
    assert Verdicts(wider).doubt(dim) is None
    assert Verdicts(GoodScores()).doubt(dim) is None  # nothing is known


# -- the plot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e6])
def test_the_plot_has_a_dot_a_part_and_both_promises(scale: float) -> None:
    verdicts = of_scores(scale * np.random.default_rng(0).chisquare(4, 214))
    drawn = scores_plot(verdicts.good.scores(), verdicts.limits(), [scale * 40.0, math.nan], "Plates & <nuts>")
    root = ElementTree.fromstring(drawn)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 214 + 1 + 2  # and two in the legend
    said = " ".join(text.text or "" for text in root.findall("{http://www.w3.org/2000/svg}text"))
    assert "Plates & <nuts>" in said and "214 good parts" in said
    assert "at most 1.4 % of good parts" in said and "at most 4.9 % of good parts" in said


def test_a_plot_of_parts_that_all_score_alike_stands() -> None:
    verdicts = of_scores(np.ones(20))
    ElementTree.fromstring(scores_plot(verdicts.good.scores(), verdicts.limits()))


# -- the house -------------------------------------------------------------------------------------------------------


def test_verdicts_need_no_network() -> None:
    heavy = ("torch", "timm", "scipy.stats", "PIL")
    code = f"import sys, threecad.verdicts; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
