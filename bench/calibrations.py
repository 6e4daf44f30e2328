"""Prints what bounds on good parts are worth: how often simulated calibrations break them. For docs/verdict.md.

python bench/calibrations.py [--calibrations 2000] [--picture docs/verdict.svg]

A calibration draws n good parts, scores each by a model that has not learnt from it, and sets a threshold. Its bound is
broken where more of all good parts than promised lie above that threshold under the model that is then used. With a
confidence of 95 % that may happen in 5 of 100 calibrations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import chi2, ncx2, norm

from threecad.groups import folds
from threecad.verdicts import (
    AREAS_PX,
    UNLIKE,
    Budget,
    GoodPart,
    GoodScores,
    Verdicts,
    limit,
    parts_needed,
    promised_shares,
    score_alike,
    scores_plot,
    smallest_share,
)

SIZES = (20, 50, 100, 300)
CHANNELS = 8
LEARNT = 50  # parts that a hold-out's model learns from
FOLDS = 5
UNSEEN = 4_000  # parts on which a share without a closed form is counted
DISTANCES = np.sqrt(chi2.ppf((np.arange(UNSEEN) + 0.5) / UNSEEN, CHANNELS))[:, None]
"""(UNSEEN, 1) how far good parts lie from their mean, at even steps of their distribution: fewer parts say as much."""


class Model(Protocol):
    """What has learnt from parts (n, CHANNELS) what is normal."""

    def __init__(self, parts: np.ndarray) -> None: ...

    def score(self, parts: np.ndarray) -> np.ndarray:
        """(n,) distances from normal."""

    def left_out(self) -> np.ndarray:
        """(n,) score of each learnt part, as if it had been left out; in closed form."""

    def shares_above(self, thresholds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Shares of all good parts that score higher."""


class Mean:
    """The mean of the parts; a score is the squared distance from it."""

    def __init__(self, parts: np.ndarray) -> None:
        self.parts, self.mean = parts, parts.mean(axis=0)

    def score(self, parts: np.ndarray) -> np.ndarray:
        return ((parts - self.mean) ** 2).sum(axis=1)

    def left_out(self) -> np.ndarray:
        n = len(self.parts)
        return self.score(self.parts) * (n / (n - 1)) ** 2

    def shares_above(self, thresholds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return ncx2.sf(thresholds, CHANNELS, (self.mean**2).sum())


class Gaussian:
    """Mean and covariance, as PaDiM has them at each position; a score is the squared Mahalanobis distance."""

    RIDGE = 0.01

    def __init__(self, parts: np.ndarray) -> None:
        self.parts, self.mean = parts, parts.mean(axis=0)
        self.inverse = np.linalg.inv(np.cov(parts.T) + self.RIDGE * np.eye(CHANNELS))

    def score(self, parts: np.ndarray) -> np.ndarray:
        away = parts - self.mean
        return (away @ self.inverse * away).sum(axis=1)

    def left_out(self) -> np.ndarray:
        n, away = len(self.parts), self.parts - self.mean
        # Without a part the covariance is a multiple of the one with it, less an outer product: Sherman–Morrison.
        inverse = np.linalg.inv(away.T @ away / (n - 2) + self.RIDGE * np.eye(CHANNELS))
        own = (away @ inverse * away).sum(axis=1)
        return (n / (n - 1)) ** 2 * own / (1 - n / (n - 1) / (n - 2) * own)

    def shares_above(self, thresholds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (self.score(unseen(generator)) > thresholds[:, None]).mean(axis=1)


class Nearest:
    """All parts, remembered as PatchCore does; a score is the distance to the nearest."""

    def __init__(self, parts: np.ndarray) -> None:
        self.parts = parts

    def score(self, parts: np.ndarray) -> np.ndarray:
        return cdist(parts, self.parts, "sqeuclidean").min(axis=1)

    def left_out(self) -> np.ndarray:
        apart = cdist(self.parts, self.parts, "sqeuclidean")
        np.fill_diagonal(apart, np.inf)
        return apart.min(axis=1)

    def shares_above(self, thresholds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (self.score(unseen(generator)) > thresholds[:, None]).mean(axis=1)


def unseen(generator: np.random.Generator) -> np.ndarray:
    """(UNSEEN, CHANNELS) good parts."""
    directions = generator.normal(size=(UNSEEN, CHANNELS))
    return DISTANCES * directions / np.linalg.norm(directions, axis=1, keepdims=True)


class Calibrated(NamedTuple):
    """The model that will be used, and the scores of n good parts that its thresholds come from."""

    model: Model
    scores: np.ndarray


def held_out(kind: type[Model], n: int, generator: np.random.Generator) -> Calibrated:
    """n parts kept aside from a model of `LEARNT` others."""
    model = kind(generator.normal(size=(LEARNT, CHANNELS)))
    return Calibrated(model, model.score(generator.normal(size=(n, CHANNELS))))


def cross_fitted(kind: type[Model], n: int, generator: np.random.Generator) -> Calibrated:
    """n parts, each scored by one of `FOLDS` models that has not learnt from it; used is the model of all."""
    parts = generator.normal(size=(n, CHANNELS))
    fold = folds([f"{index:04}" for index in range(n)], FOLDS, seed=0)
    scores = np.empty(n)
    for which in range(FOLDS):
        scores[fold == which] = kind(parts[fold != which]).score(parts[fold == which])
    return Calibrated(kind(parts), scores)


def left_out(kind: type[Model], n: int, generator: np.random.Generator) -> Calibrated:
    """n parts, each scored as if it had been left out; used is the model of all."""
    model = kind(generator.normal(size=(n, CHANNELS)))
    return Calibrated(model, model.left_out())


SCHEMES: dict[str, Callable[[type[Model], int, np.random.Generator], Calibrated]] = {
    "hold-out": held_out,
    "folds": cross_fitted,
    "left out": left_out,
}
MODELS: dict[str, type[Model]] = {"mean": Mean, "Gaussian": Gaussian, "nearest": Nearest}


def broken(scheme: str, model: str, n: int, budgets: Sequence[Budget], calibrations: int, seed: int = 0) -> list[float]:
    """For each budget, the share of calibrations in which more good parts lie above its threshold than promised."""
    generator = np.random.default_rng([seed, n])
    counts = np.zeros(len(budgets))
    for _ in range(calibrations):
        fitted, scores = SCHEMES[scheme](MODELS[model], n, generator)
        limits = [limit(scores, budget) for budget in budgets]
        shares = fitted.shares_above(np.array([one.threshold for one in limits]), generator)
        counts += shares > [one.promised for one in limits]
    return (counts / calibrations).tolist()


def broken_by_lots(lots: int, n: int, budget: Budget, calibrations: int) -> float:
    """As `broken`, over all lots to come: n good parts are of few, and a score is as much its lot's as its own."""
    generator, count = np.random.default_rng([lots, n]), 0
    for _ in range(calibrations):
        of_lots = generator.normal(size=lots)
        found = limit(of_lots[np.arange(n) % lots] + generator.normal(size=n), budget)
        count += norm.sf(found.threshold / np.sqrt(2)) > found.promised
    return count / calibrations


def broken_by_exposures(exposures: int, n: int, budget: Budget, calibrations: int) -> float:
    """As `broken`, where n images of n / `exposures` parts are taken for n parts; exposures differ by a tenth."""
    generator, count = np.random.default_rng([exposures, n]), 0
    spread = float(np.hypot(1, 0.1))
    for _ in range(calibrations):
        of_parts = np.repeat(generator.normal(size=n // exposures), exposures)
        found = limit(of_parts + 0.1 * generator.normal(size=n), budget)
        count += norm.sf(found.threshold / spread) > found.promised
    return count / calibrations


def noticed(shift: float, further: int, n: int, calibrations: int) -> float:
    """How often `further` good parts, whose scores lie `shift` spreads higher, are found to differ from n others."""
    generator, count = np.random.default_rng([further, n, round(100 * shift)]), 0
    for _ in range(calibrations):
        others = generator.normal(size=n)
        count += score_alike(shift + generator.normal(size=further), others) < UNLIKE
    return count / calibrations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrations", type=int, default=2000)
    parser.add_argument("--picture", type=Path, help="also draw the picture of docs/verdict.md into this file")
    options = parser.parse_args()
    print_promises()
    print_coverage(options.calibrations)
    print_misuse(options.calibrations)
    print_noticed(options.calibrations)
    if options.picture:
        options.picture.write_text(picture(), encoding="utf-8")


def print_promises() -> None:
    """What n good parts allow at best, and how many a budget needs."""
    bound, average = Budget(0.01), Budget(0.01, rule="average")
    print("| good parts | at most rejected, 95 % confidence | on average | smallest `good_share` |")
    print("| ---: | ---: | ---: | ---: |")
    for n in (20, 50, 100, 200, 299, 500, 1000):
        shares = (promised_shares(n, bound)[0], promised_shares(n, average)[0], smallest_share(n))
        print(f"| {n} | {' | '.join(f'{100 * share:.2f} %' for share in shares)} |")
    print("\n| budget of good parts | parts needed, 95 % confidence | parts needed on average |")
    print("| ---: | ---: | ---: |")
    for share in (0.1, 0.05, 0.02, 0.01, 0.005, 0.001):
        needed = [parts_needed(Budget(share, rule=rule)) for rule in ("bound", "average")]
        print(f"| {100 * share:g} % | {needed[0]} | {needed[1]} |")


def print_coverage(calibrations: int) -> None:
    """How often each way of scoring good parts breaks its bound; a hold-out's does not depend on the model."""
    budgets = (Budget(0.05), Budget(0.01))
    print(f"\n| good parts scored by | model | budget | {' | '.join(f'n = {n}' for n in SIZES)} |")
    print("| --- | --- | ---: |" + " ---: |" * len(SIZES))
    for scheme in SCHEMES:
        for model in ["mean"] if scheme == "hold-out" else MODELS:
            columns = [broken(scheme, model, n, budgets, calibrations) for n in SIZES]
            for budget, shares in zip(budgets, zip(*columns, strict=True), strict=True):
                cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
                print(f"| {scheme} | {model} | {100 * budget.share:g} % | {cells} |", flush=True)


def print_misuse(calibrations: int) -> None:
    """How often the bound breaks where parts are not exchangeable."""
    budget = Budget(0.05)
    print("\n| 100 good parts of | bound broken over all lots to come |\n| ---: | ---: |")
    for lots in (1, 3, 10, 100):
        print(
            f"| {lots} lot{'s' if lots > 1 else ''} | {100 * broken_by_lots(lots, 100, budget, calibrations):.0f} % |"
        )
    print("\n| 100 images, of each part | bound broken, images taken for parts |\n| ---: | ---: |")
    for exposures in (1, 2, 5):
        print(f"| {exposures} | {100 * broken_by_exposures(exposures, 100, budget, calibrations):.0f} % |")


def print_noticed(calibrations: int) -> None:
    """How often `threecad verdict --good` notices that parts have changed."""
    further = (10, 20, 50)
    print(f"\n| scores have moved by | {' | '.join(f'{m} further parts' for m in further)} |\n| ---: |" + " ---: |" * 3)
    for shift in (0.0, 0.5, 1.0, 2.0):
        cells = [f"{100 * noticed(shift, m, 200, calibrations):.0f} %" for m in further]
        print(f"| {shift:g} spreads | {' | '.join(cells)} |", flush=True)


def picture() -> str:
    """Scores drawn at random, with both thresholds."""
    generator = np.random.default_rng(214)
    good = [
        GoodPart(part=str(index), score=score, peaks=(score,) * len(AREAS_PX))
        for index, score in enumerate(generator.chisquare(CHANNELS, 214))
    ]
    verdicts = Verdicts(GoodScores(parts={"parts": tuple(good)}))
    defects = 12 + generator.chisquare(3 * CHANNELS, 30)
    title = "Scores drawn at random: 214 good parts, and 30 that are not"
    return scores_plot(verdicts.good.scores(), verdicts.limits(), defects, title)


if __name__ == "__main__":
    main()
