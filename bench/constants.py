"""What the two constants of CFRG's calibration are worth on a run's test images, and what altered parts say of one.

python bench/constants.py RUN --data ROOT [--textures FOLDER]

The share of the common covariance is learnt anew for each value, from the altered parts of one draw; the network and
the rest of the calibration stay as they are. Its likeliest value is that of an inverse Wishart prior whose mean is the
common covariance: `likeliest_strength` says how many parts that prior is worth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from threecad.checkpoint import load_detector
from threecad.data.loading import load_images, load_masks
from threecad.data.readers import read_category
from threecad.detector import Epochs, StatisticsPhase
from threecad.devices import autocast
from threecad.methods.cfrg import CFRG
from threecad.metrics import pixel_scores
from threecad.nets.calibration import COARSE_WEIGHT, SHARED_COVARIANCE, Calibration
from threecad.nets.gaussians import covariance, covariance_of_all, whitening
from threecad.runs import RunFolder
from threecad.synthesis import Synthesizer
from threecad.synthesis.textures import texture_source
from threecad.tensors import seed_everything, to_tensor

HEADER = ("set", "share", "weight", "P-AUROC", "P-PRO per image", "P-PRO pooled", "AP")
SHARES = (0.02, 0.1, 0.3, 1.0)
WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)
BATCH = 8
STRENGTHS = torch.logspace(0, 5, 101, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--textures", default="procedural")
    options = parser.parse_args()
    detector, record = load_detector(RunFolder(options.run))
    cfrg = cast("CFRG", detector)
    calibration, (name,) = cast("Calibration", cfrg.calibration), record.categories
    category = read_category(options.data, name)
    size, precision = cfrg.config.image_size, record.precision

    left_out = set(record.exclusions)
    learnt = [sample for sample in category.train if category.path_in_root(sample.image) not in left_out]
    phases = cfrg.phases(texture_source(options.textures))
    phase = next(one for one in phases if one.name == "coarse_distances")
    sums = summed(cast("StatisticsPhase", phase), np.array(load_images(learnt, size)), precision)

    strength = likeliest_strength(sums)
    own = (sums["count"] - 1).clamp_min(1)
    asked = float((strength / (own + strength)).median())
    print(f"{name}: altered parts are likeliest with a share of {asked:.2f} (a prior worth {strength:.0f} parts)\n")

    print(f"| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}", flush=True)
    images, masks = np.array(load_images(category.test, size)), load_masks(category.test, size)
    vanished = [sample.is_defect and not mask.any() for sample, mask in zip(category.test, masks, strict=True)]
    pairs = [(share, COARSE_WEIGHT) for share in (*SHARES, asked)] + [(SHARED_COVARIANCE, one) for one in WEIGHTS]
    for share in sorted({share for share, _ in pairs}):
        calibration.coarse.conclude(sums, cfrg.config.ridge, relative=True, shared=share)
        segmented, around = (np.concatenate(kind) for kind in zip(*terms(cfrg, images, precision), strict=True))
        for weight in sorted({weight for one, weight in pairs if one == share}):
            scores = pixel_scores(segmented + weight * around, masks, left_out_of_pro=vanished)
            values = (scores.p_auroc, scores.p_pro_per_image, scores.p_pro, scores.p_ap)
            cells = [f"{share:.2f}", f"{weight:.1f}", *(f"{100 * value:.1f}" for value in values)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def summed(phase: StatisticsPhase, images: np.ndarray, precision: str) -> dict[str, Tensor]:
    """The sums of a statistics phase over the images, altered anew in every pass."""
    sums, device = phase.empty_sums(), torch.device("cpu")
    alter = cast("Synthesizer", phase.synthesizer)
    for passed in range(int(cast("Epochs", phase.duration).count)):
        for first in range(0, len(images), BATCH):
            batch = alter(to_tensor(images[first : first + BATCH]), seed_everything((passed, first), device))
            with torch.no_grad(), autocast(precision, device):
                phase.observe(sums, batch)
    return sums


def terms(cfrg: CFRG, images: np.ndarray, precision: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the map adds up, (B, H, W) twice: what is segmented, and what is around."""
    calibration = cast("Calibration", cfrg.calibration)
    with torch.no_grad(), autocast(precision, torch.device("cpu")):
        for first in range(0, len(images), BATCH):
            found = calibration.measure(cfrg._compare(to_tensor(images[first : first + BATCH])))
            yield found.segmented[:, 0].float().numpy(), calibration.around(found)[:, 0].float().numpy()


def likeliest_strength(sums: Mapping[str, Tensor]) -> float:
    """k of the prior IW(k + D + 1, k Σ_common) under which what was seen of all positions is likeliest.

    A position's Σ is then (N - 1) / (N - 1 + k) of its own covariance and k / (N - 1 + k) of the common one.
    """
    count = sums["count"].clamp_min(2)
    mean = sums["sum"] / count.unsqueeze(1)
    own = covariance(sums["product"], mean, count, ridge=0.0)
    degrees, dimensions = count - 1, mean.shape[1]
    common = covariance_of_all(sums["product"], mean, count, ridge=0.0)
    turn = whitening(common.unsqueeze(0))[0]
    values = torch.linalg.eigvalsh(turn.T @ own @ turn).clamp_min(0)  # (P, D), in units of the common covariance

    def evidence(strength: Tensor) -> Tensor:
        before = strength + dimensions + 1
        after = before + degrees
        scatter = (strength + degrees.unsqueeze(1) * values).log().sum(dim=1)
        gamma = torch.special.multigammaln
        ratio = gamma(after / 2, dimensions) - gamma((before / 2).expand_as(after), dimensions)
        return (ratio + before / 2 * dimensions * strength.log() - after / 2 * scatter).sum()

    return float(STRENGTHS[torch.stack([evidence(strength) for strength in STRENGTHS]).argmax()])


if __name__ == "__main__":
    main()
