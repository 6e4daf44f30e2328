"""A short fit teaches every method to rank parts with a planted defect above good ones, and bf16 keeps the ranking.

One fit proves little: this file run as a script fits each method for several seeds, thread counts and precisions, and
prints by how much each fit passes; the commits of this file say what it printed.

    python tests/test_short_fits.py [--methods draem,cfrg] [--seeds 5] [--threads 1,2] [--precisions float32,bf16]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from test_contract import CPU, parts, rows
from threecad.fit_plan import plan_fit
from threecad.methods import METHODS
from threecad.metrics.image import image_scores
from threecad.records import Prediction
from threecad.runs import RunFolder
from threecad.settings import TrainingSettings
from threecad.synthesis.textures import ProceduralTextures
from threecad.tensors import seed_everything, to_tensor
from threecad.training import train

PACE: dict[str, tuple[int, dict[str, object]]] = {
    "rd": (120, {}),
    "cfrg": (60, {"image_size": (64, 64), "learning_rate": 1e-3}),
    "crad": (120, {}),
    "draem": (160, {"learning_rate": 2e-3}),
    "destseg": (200, {}),
    "realnet": (200, {"learning_rate": 1e-3, "width_ratio": 0.125, "standardised": True, "prior": 0.05}),
}
"""Steps and settings of the methods for which 40 steps at the paper's rate are no beginning yet.

DRAEM starts from no backbone and from logits near 0: for about 80 steps it learns little more than that most pixels are
normal, and where between "little" and "enough" it stands by then is a matter of rounding. Twice as many are past that.
"""

LEAST_AUROC, MOST_LOST = 0.9, 0.02
"""What passes. Scores that know nothing of the defect reach an AUROC of 0.5 ± 0.1."""

IMAGES = 16
"""Good images to judge by, and as many again with a planted defect."""


class Outcome(NamedTuple):
    """How well a fitted detector tells planted defects from good parts, and what bf16 costs.

    Pixels are judged by AUROC and not by a rank correlation of the maps: where a part is good a map is flat, and the
    order of its values there is rounding in any precision.
    """

    auroc: float  # of the images' scores in float32
    auroc_bf16: float
    pixel_auroc: float  # of defect pixels against the other pixels of the defective images, in float32
    pixel_auroc_bf16: float

    @property
    def lost(self) -> float:
        """Pixel AUROC that is lost in bf16."""
        return self.pixel_auroc - self.pixel_auroc_bf16


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_after_a_short_fit_planted_defects_outscore_good_parts_and_bf16_ranks_alike(name: str) -> None:
    outcome = short_fit(name, seed=1)
    assert outcome.auroc > LEAST_AUROC
    assert outcome.auroc_bf16 > LEAST_AUROC
    assert outcome.lost < MOST_LOST


def short_fit(name: str, seed: int, precision: str = "float32") -> Outcome:
    """Fit the tiny detector of a method, in `precision`, from weights and synthetic defects that `seed` decides."""
    steps, changes = PACE.get(name, (40, {}))
    method = METHODS[name]
    seed_everything((seed,), CPU)
    detector = method(method.Config(**(method.Config.tiny().model_dump() | changes))).eval()
    size, textures = detector.config.image_size, ProceduralTextures()
    settings = TrainingSettings(batch=4, steps=steps, schedule="one_cycle", seed=seed)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if precision == "bf16" else "32-true")
    plan = plan_fit(detector, textures, settings, 16)
    with tempfile.TemporaryDirectory() as folder:
        train(detector, rows(parts(16, size)), textures, settings, plan, RunFolder(Path(folder)), fabric)

    good = parts(IMAGES, size, seed=7)
    bad, masks = with_defects(good)
    images = to_tensor(np.concatenate([good, bad]), CPU)
    with torch.no_grad():
        exact = detector(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = detector(images)
    return Outcome(image_auroc(exact), image_auroc(rough), pixel_auroc(exact, masks), pixel_auroc(rough, masks))


def with_defects(good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, H, W, 3) uint8 with a square of noise each, a quarter of the height wide, and masks (N, H, W)."""
    bad, masks, height, width = good.copy(), np.zeros(good.shape[:3], bool), *good.shape[1:3]
    side, generator = height // 4, np.random.default_rng(0)
    for part, mask in zip(bad, masks, strict=True):
        row, column = generator.integers(8, height - side - 8), generator.integers(8, width - side - 8)
        place = slice(row, row + side), slice(column, column + side)
        part[place], mask[place] = generator.integers(0, 256, (side, side, 3)), True
    return bad, masks


def image_auroc(prediction: Prediction) -> float:
    return image_scores(prediction.score.numpy(), np.repeat([0, 1], IMAGES)).i_auroc


def pixel_auroc(prediction: Prediction, masks: np.ndarray) -> float:
    return image_scores(prediction.anomaly_map[IMAGES:].numpy().ravel(), masks.ravel()).i_auroc


def main() -> None:
    """Print every fit to standard error as it ends, and the worst of each method and precision as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--precisions", default="float32,bf16")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    print("| method | fitted in | fits | least AUROC | least in bf16 | least pixel AUROC | most of it lost in bf16 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, precision in itertools.product(chosen.methods.split(","), chosen.precisions.split(",")):
        outcomes = []
        for seed, threads in itertools.product(range(1, chosen.seeds + 1), map(int, chosen.threads.split(","))):
            torch.set_num_threads(threads)
            outcomes.append(short_fit(name, seed, precision))
            print(f"{name} {precision} seed {seed}, threads {threads}: {outcomes[-1]}", file=sys.stderr, flush=True)
        least = (f"{min(column):.3f}" for column in list(zip(*outcomes, strict=True))[:3])
        lost = max(outcome.lost for outcome in outcomes)
        print(f"| {name} | {precision} | {len(outcomes)} | {' | '.join(least)} | {lost:.4f} |", flush=True)


if __name__ == "__main__":
    main()
