"""What verdicts learnt from good parts alone do on test parts: promised and realised, as Markdown tables.

python bench/verdicts_on.py ROOT --out DIR [--method padim]… [--category NAME]… [--set table.key=value]… [--lot REGEX]

Fits a run a method and set, DIR/METHOD-SET, where there is no finished one, and keeps the test's scores beside it; a
second call only judges. The good parts of a run that has learnt from all and scored none come from the test: every
other one is calibrated with, and only the rest is judged. With --lot, which finds a lot in a file's name, the good
parts of each lot are held against a bound that was learnt from all others.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from threecad.data.hashes import content_hashes
from threecad.data.readers import Category, list_categories, read_category
from threecad.files import write_json
from threecad.fitting import fit
from threecad.inference import load
from threecad.inputs import Input
from threecad.methods import METHODS
from threecad.prediction import look_through
from threecad.records import GOOD
from threecad.runs import RunFolder
from threecad.settings_layers import merge, parse_pairs
from threecad.verdicts import (
    AREAS_PX,
    Budget,
    GoodPart,
    Verdicts,
    VerdictSettings,
    compare_lots,
    image_name,
    limit,
    per_cent,
    score_alike,
    share_of,
    with_interval,
)

REJECT_AT = (0.01, 0.02, 0.05)
HEADER = ("set", "method", "good scored by", "n", "reject_at", "NG above", "promised", "good rejected", "holds")
HEADER += ("defects not rejected",)
BY_TYPE = ("set", "method", "defect", "parts", *(f"escape at {per_cent(share)}" for share in REJECT_AT))
ALIKE = ("set", "method", "calibrated", "median", "test/good", "median", "p of no difference")


def main() -> None:
    asked = arguments()
    overall, by_type, alike, by_lot = [], [], [], []
    for name in asked.category or list_categories(asked.root):
        for method in asked.method or ["cfrg"]:
            run, labels = fitted(asked, method, name), (name, METHODS.paper(method).name)
            scored_by, verdicts, scores = calibrated(run, test_scores(run, asked.root, name))
            overall += [(*labels, scored_by, *row) for row in rows(verdicts, scores)]
            by_type += [(*labels, *row) for row in rows_by_type(verdicts, scores)]
            alike.append((*labels, *row_of_likeness(verdicts, scores)))
            if asked.lot:
                parts = in_lots(verdicts, read_category(asked.root, name), asked.lot)
                by_lot += [(*labels, *row) for row in rows_by_lot(parts)]
    tables = [markdown(HEADER, overall), markdown(BY_TYPE, by_type), markdown(ALIKE, alike)]
    if asked.lot:
        tables.append(markdown(BY_LOT, by_lot))
    print("\n".join(tables).rstrip())


LOT_BUDGET = Budget(0.05)
BY_LOT = ("set", "method", "lot", "parts", "median", "promised by the others", "above", "p of all alike")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", action="append")
    parser.add_argument("--category", action="append")
    parser.add_argument("--set", dest="pairs", action="append", default=[])
    parser.add_argument("--lot")
    return parser.parse_args()


def fitted(asked: argparse.Namespace, method: str, name: str) -> Path:
    """The run of a set, fitted where it is not there yet."""
    run = asked.out / f"{method}-{name}"
    usual = {"training": {"preset": "quick"}, "method": {"backbone": "embedded"}}
    settings = merge(usual, parse_pairs(asked.pairs))
    if not (run / "run.json").exists() or not RunFolder(run).read_record().finished:
        fit(method, asked.root, run, categories=[name], settings=settings, resume=True)
    return run


def test_scores(run: Path, root: Path, name: str) -> dict[str, list[float]]:
    """Scores of the test images, by defect type; kept beside the run."""
    kept = run.with_suffix(".json")
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    predictor, samples = load(run), read_category(root, name).test
    images = [Input(sample.image, sample.image.stem) for sample in samples]
    scores: dict[str, list[float]] = {}
    for sample, (image, found) in zip(samples, look_through(predictor, images), strict=True):
        if found is None:
            raise SystemExit(image.error)
        scores.setdefault(sample.defect, []).append(found.score)
    write_json(kept, scores)
    return scores


def calibrated(run: Path, scores: dict[str, list[float]]) -> tuple[str, Verdicts, dict[str, list[float]]]:
    """How good parts were scored, the verdicts that follow, and the scores of the test that are left to judge."""
    verdicts = RunFolder(run).read_verdicts()
    if verdicts.good.categories:
        return RunFolder(run).read_record().scoring, verdicts, scores
    half, rest = scores[GOOD][::2], scores[GOOD][1::2]
    parts = tuple(GoodPart(part=str(k), score=score, peaks=(score,) * len(AREAS_PX)) for k, score in enumerate(half))
    (name,) = verdicts.good.parts
    good = verdicts.good.model_copy(update={"parts": {name: parts}})
    return "half of the test", Verdicts(good, verdicts.settings), {**scores, GOOD: rest}


def at(verdicts: Verdicts, share: float) -> Verdicts:
    """The same good parts with another budget of rejects."""
    settings = VerdictSettings(reject_at=share, review_at=max(share, verdicts.settings.review_at))
    return Verdicts(verdicts.good, settings)


def rows(verdicts: Verdicts, scores: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """A row a threshold: which budgets have it, what is promised, and what becomes of the test parts."""
    good = np.array(scores.get(GOOD, []))
    bad = np.array([score for defect, some in scores.items() if defect != GOOD for score in some])
    limits = [at(verdicts, share).limits().reject for share in REJECT_AT]
    for threshold in dict.fromkeys(one.threshold for one in limits):
        those = [one for one in limits if one.threshold == threshold]
        budgets, one = ", ".join(per_cent(each.budget.share) for each in those), those[0]
        rejected = share_of(int((good > threshold).sum()), len(good), one.budget.confidence)
        kept = share_of(int((bad <= threshold).sum()), len(bad), one.budget.confidence)
        holds = "yes" if rejected.low <= one.promised else "NO"
        yield (
            *(str(one.n), budgets, f"{threshold:.4g}", per_cent(one.promised, up=True)),
            *(f"{with_interval(rejected)} of {len(good)}", holds, f"{with_interval(kept)} of {len(bad)}"),
        )


def rows_by_type(verdicts: Verdicts, scores: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """A row a defect type: how many are not rejected at each budget."""
    limits = [at(verdicts, share).limits().reject.threshold for share in REJECT_AT]
    for defect in sorted(set(scores) - {GOOD}):
        found = np.array(scores[defect])
        yield (defect, str(len(found)), *(str(int((found <= threshold).sum())) for threshold in limits))


def row_of_likeness(verdicts: Verdicts, scores: dict[str, list[float]]) -> tuple[str, ...]:
    """Whether the test's good parts score as those did that thresholds come from."""
    calibrated, good = verdicts.good.scores(), np.array(scores.get(GOOD, []))
    medians = [f"{np.median(some):.4g}" for some in (calibrated, good)]
    p_value = score_alike(good, calibrated)
    return (str(len(calibrated)), medians[0], str(len(good)), medians[1], f"{p_value:.2g}")


def in_lots(verdicts: Verdicts, category: Category, pattern: str) -> list[GoodPart]:
    """The good parts that a lot is found for, by the names of their files."""
    files = [sample.image for sample in category.train]
    names = dict(zip(map(image_name, content_hashes(files)), (file.name for file in files), strict=True))
    found = [(part, re.search(pattern, names.get(part.part, ""))) for part in verdicts.good.of()]
    return [part.model_copy(update={"lot": lot[0]}) for part, lot in found if lot]


def rows_by_lot(parts: list[GoodPart]) -> Iterator[tuple[str, ...]]:
    """A row a lot: how many of its parts are above the threshold that the others' 5 % give."""
    lots = compare_lots(parts)
    if lots is None:
        return
    for lot in lots.rows:
        others = limit([part.score for part in parts if part.lot != lot.name], LOT_BUDGET)
        above = sum(part.score > others.threshold for part in parts if part.lot == lot.name)
        share = with_interval(share_of(above, lot.n, LOT_BUDGET.confidence))
        promised = per_cent(others.promised, up=True)
        yield (lot.name, str(lot.n), f"{lot.median:.4g}", promised, share, f"{lots.p_value:.2g}")


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ("---",) * len(header), *lines)) + "\n"


if __name__ == "__main__":
    main()
