"""What verdicts learnt from good parts alone do on test parts: promised and realised, as Markdown tables.

python bench/verdicts_on.py ROOT --out DIR [--method cfrg] [--category NAME]… [--set table.key=value]…

Fits a run a set in DIR where there is no finished one; a second call only judges.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from threecad.data.readers import list_categories, read_category
from threecad.deciding import with_interval
from threecad.fitting import fit
from threecad.inference import load
from threecad.inputs import Input
from threecad.prediction import look_through
from threecad.records import GOOD
from threecad.runs import RunFolder
from threecad.settings import merge, parse_pairs
from threecad.verdicts import Verdicts, VerdictSettings, per_cent, share_of

REJECT_AT = (0.01, 0.02, 0.05)
HEADER = ("set", "n", "reject_at", "NG above", "promised", "good rejected", "holds", "defects not rejected")
BY_TYPE = ("set", "defect", "parts", *(f"escape at {per_cent(share)}" for share in REJECT_AT))


def main() -> None:
    asked = arguments()
    overall, by_type = [], []
    for name in asked.category or list_categories(asked.root):
        run = fitted(asked, name)
        verdicts, scores = load(run).verdicts, test_scores(run, asked.root, name)
        overall += list(rows(name, verdicts, scores))
        by_type += list(rows_by_type(name, verdicts, scores))
    print(markdown(HEADER, overall), markdown(BY_TYPE, by_type), sep="\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="cfrg")
    parser.add_argument("--category", action="append")
    parser.add_argument("--set", dest="pairs", action="append", default=[])
    return parser.parse_args()


def fitted(asked: argparse.Namespace, name: str) -> Path:
    """The run of a set, fitted where it is not there yet."""
    run = asked.out / f"{asked.method}-{name}"
    usual = {"training": {"preset": "quick"}, "method": {"backbone": "embedded"}}
    settings = merge(usual, parse_pairs(asked.pairs))
    if not (run / "run.json").exists() or not RunFolder(run).read_record().finished:
        fit(asked.method, asked.root, run, categories=[name], settings=settings, resume=True)
    return run


def test_scores(run: Path, root: Path, name: str) -> dict[str, list[float]]:
    """Scores of the test images, by defect type."""
    predictor, samples = load(run), read_category(root, name).test
    images = [Input(sample.image, sample.image.stem) for sample in samples]
    scores: dict[str, list[float]] = {}
    for sample, (image, found) in zip(samples, look_through(predictor, images), strict=True):
        if found is None:
            raise SystemExit(image.error)
        scores.setdefault(sample.defect, []).append(found.score)
    return scores


def at(verdicts: Verdicts, share: float) -> Verdicts:
    """The same good parts with another budget of rejects."""
    settings = VerdictSettings(reject_at=share, review_at=max(share, verdicts.settings.review_at))
    return Verdicts(verdicts.good, settings)


def rows(name: str, verdicts: Verdicts, scores: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """A row a budget: what is promised, and what becomes of the test parts."""
    good = np.array(scores.get(GOOD, []))
    bad = np.array([score for defect, some in scores.items() if defect != GOOD for score in some])
    for share in REJECT_AT:
        limit = at(verdicts, share).limits().reject
        rejected = share_of(int((good > limit.threshold).sum()), len(good), limit.budget.confidence)
        kept = share_of(int((bad <= limit.threshold).sum()), len(bad), limit.budget.confidence)
        holds = "yes" if rejected.low <= limit.promised else "NO"
        yield (
            *(name, str(limit.n), per_cent(share), f"{limit.threshold:.4g}", per_cent(limit.promised, up=True)),
            *(f"{with_interval(rejected)} of {len(good)}", holds, f"{with_interval(kept)} of {len(bad)}"),
        )


def rows_by_type(name: str, verdicts: Verdicts, scores: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """A row a defect type: how many are not rejected at each budget."""
    limits = [at(verdicts, share).limits().reject.threshold for share in REJECT_AT]
    for defect in sorted(set(scores) - {GOOD}):
        found = np.array(scores[defect])
        escaped = [f"{int((found <= limit).sum())} of {len(found)}" for limit in limits]
        yield (name, defect, str(len(found)), *escaped)


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ("---",) * len(header), *lines)) + "\n"


if __name__ == "__main__":
    main()
