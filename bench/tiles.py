"""What tiles find that the part as a whole does not, and what they cost: one Markdown row a way of looking.

python bench/tiles.py ROOT --out DIR --category NAME --grid 3 [--method padim] [--every 2]

Every way has the same frames of about 65,536 pixels: the part in one of them, or in `grid` × `grid` overlapping tiles
at about its own size. A third of the good parts is kept aside. A defect, a connected area of its mask, is found where
the map is above its threshold for regions there, which 5 % of good parts may exceed; a small one is under 0.1 % of the
image. Maps and masks meet at twice a frame's height and width. Times are processor time, medians over parts that all
ways look at in turn.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from threecad.data.readers import read_category
from threecad.evaluation import evaluate
from threecad.fitting import fit
from threecad.images import read_image, read_mask
from threecad.inference import load
from threecad.predictor import Predictor
from threecad.records import Sample
from threecad.regions import label_regions, region_areas
from threecad.runs import RunFolder

SMALL = 0.001
TIMED = 12
HEADER = (
    *("set", "frames", "P-AUROC", "AP", "AP × whole", "defects", "found", "small defects", "found", "good parts above"),
    *("time a part × whole",),
)


class Way(NamedTuple):
    """A way of looking at a part."""

    name: str
    data: dict[str, Any]


def main() -> None:
    asked = arguments()
    root = thinned(asked.root, asked.category, asked.every, asked.out)
    grid = [asked.grid, asked.grid]
    ways = [
        Way("whole", {}),
        Way("tiles", {"tiles": grid, "whole": False}),
        Way("tiles and whole", {"tiles": grid}),
        Way("tiles and whole, a detector each", {"tiles": grid, "each": True}),
    ]
    ways = [way for way in ways if not asked.way or way.name in asked.way]
    runs = [fitted(asked, root, way) for way in ways]
    test = read_category(root, asked.category).test
    seconds = [statistics.median(times) for times in timed([load(run) for run in runs], test)]
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}", flush=True)
    base = None
    for way, run, each in zip(ways, runs, seconds, strict=True):
        predictor, record = load(run), RunFolder(run).read_record()
        record.settings["evaluation"]["size"] = [2 * side for side in predictor.image_size]
        scores = evaluate(predictor, record, read_category(root, asked.category))
        base = base or (scores["p_ap"], each)
        share = f"{scores['p_ap'] / base[0]:.2f}"
        metrics = (f"{100 * scores['p_auroc']:.1f}", f"{100 * scores['p_ap']:.1f}", share)
        cells = (asked.category, way.name, *metrics, *recall(predictor, test), f"{each / base[1]:.1f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--method", default="padim")
    parser.add_argument("--every", type=int, default=1, help="take every so many images of each folder")
    parser.add_argument("--way", action="append", help="only these")
    return parser.parse_args()


def thinned(root: Path, name: str, every: int, out: Path) -> Path:
    """A root with every so many images of the category's folders; the root itself for each."""
    if every == 1:
        return root
    thin = out / f"every-{every}"
    category = read_category(root, name)
    for samples in (category.train, category.test):
        by_defect: dict[str, list[Sample]] = {}
        for sample in samples:
            by_defect.setdefault(sample.defect, []).append(sample)
        for some in by_defect.values():
            for file in [path for sample in some[::every] for path in (sample.image, *sample.masks)]:
                target = thin / name / file.relative_to(category.folder)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
    return thin


def fitted(asked: argparse.Namespace, root: Path, way: Way) -> Path:
    """The run of a way, fitted where it is not there yet."""
    run = asked.out / f"{asked.method}-{asked.category}-{way.name.replace(', ', ' ').replace(' ', '-')}"
    if (run / "run.json").exists() and RunFolder(run).read_record().finished:
        return run
    settings = {
        "training": {"preset": "quick"},
        "method": {"backbone": "embedded"},
        "data": {"holdout": 1 / 3, **way.data},
    }
    fit(asked.method, root, run, categories=[asked.category], settings=settings, resume=True)
    return run


def timed(predictors: list[Predictor], test: tuple[Sample, ...]) -> list[list[float]]:
    """Seconds of each predictor for each of some parts, read beforehand."""
    seconds: list[list[float]] = [[] for _ in predictors]
    for sample in test[:: max(len(test) // TIMED, 1)]:
        pixels = read_image(sample.image)
        for predictor, times in zip(predictors, seconds, strict=True):
            start = time.process_time()
            predictor(pixels)
            times.append(time.process_time() - start)
    return seconds


def recall(predictor: Predictor, test: tuple[Sample, ...]) -> tuple[str, ...]:
    """How many defects there are and are found, likewise small ones, and how many good parts have a pixel above."""
    threshold = predictor.verdicts.limits().region.threshold
    found, small, above, good = [], [], 0, 0
    pictures = (predictor.view.frames(read_image(sample.image)) for sample in test)
    for sample, seen in zip(test, predictor.inspect(pictures), strict=True):
        if not sample.is_defect:
            above, good = above + bool(seen.anomaly_map.max() > threshold), good + 1
            continue
        if sample.mask is None:
            continue
        labels, count = label_regions(read_mask(sample.mask, more=sample.more_masks).astype(bool))
        anomaly_map = seen.at(labels.shape)
        for label, area in enumerate(region_areas(labels, count), start=1):
            is_found = bool(anomaly_map[labels == label].max() > threshold)
            found.append(is_found)
            if area < SMALL * labels.size:
                small.append(is_found)
    shares = (str(len(found)), f"{100 * np.mean(found):.0f} %", str(len(small)))
    return (*shares, f"{100 * np.mean(small):.0f} %" if small else "–", f"{above} of {good}")


if __name__ == "__main__":
    main()
