"""Thresholds among good parts' scores promise what they keep: by known values, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from calibrations import MODELS, SCHEMES, broken, broken_by_exposures, broken_by_lots
from threecad.errors import SettingsError
from threecad.verdicts import (
    Budget,
    good_share,
    limit,
    parts_needed,
    promise,
    promised_shares,
    smallest_share,
)


def test_good_share_is_the_share_of_good_parts_that_look_as_odd() -> None:
    good = [1.0, 2.0, 3.0, 4.0]
    assert [good_share(score, good) for score in (5, 4, 2.5, 0)] == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert good_share(1, []) == 1
    assert good_share(5, good) == smallest_share(4)


def test_a_score_that_is_not_a_number_is_no_rarer_than_any_good_part() -> None:
    assert good_share(math.nan, [1.0, 2.0]) == 1


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


def test_one_missing_part_is_named_as_one() -> None:
    assert promise(limit(np.arange(298.0), Budget(0.01))).endswith("; 1 more is needed for 1 %.")
