"""How well runs of one category outline each type of defect: AP of the pixels of that type's images and the good ones.

python bench/defect_types.py RUN… --data ROOT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from threecad.evaluation import Seen, evaluate_run
from threecad.metrics import pixel_scores
from threecad.records import GOOD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    found = [dict(average_precisions(run, asked.data)) for run in asked.runs]
    header = ("defect", *map(str, asked.runs))
    print(f"| {' | '.join(header)} |\n|---|{'---:|' * len(found)}")
    for kind in found[0]:
        print(f"| {kind} | {' | '.join(f'{100 * one[kind]:.1f}' for one in found)} |")


def average_precisions(run: Path, root: Path) -> Iterator[tuple[str, float]]:
    """AP of each type of defect."""
    seen: list[Seen] = []
    evaluate_run(run, root, on_image=seen.append)
    for kind in sorted({part.sample.defect for part in seen} - {GOOD}):
        shown = [part for part in seen if part.sample.defect in (GOOD, kind)]
        maps = [part.found.at(part.mask.shape) for part in shown]
        yield kind, pixel_scores(maps, [part.mask for part in shown]).p_ap


if __name__ == "__main__":
    main()
