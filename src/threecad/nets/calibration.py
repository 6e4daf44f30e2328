"""Distances between pyramids in units of their spread (ours, not the paper's; CFRG's option).

1 - cos of two unit vectors is half the squared length of their difference. Here that difference is whitened by its mean
and covariance at each position before its length M is taken; M² is about its number of channels where nothing is
wrong. Two things are measured, against two kinds of parts:

- fine: how the recovered features differ from the teacher's, at each scale, against good parts;
- coarse: how all other pyramids differ from the teacher's at the coarsest scale, taken together, against altered parts
  where they are *not* altered. An anomaly upsets the features around it too, by what the networks see of it from there;
  on good parts that never happens, so that a spread learnt from them takes the surroundings for defects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.records import Prediction

COARSE_WEIGHT = 0.3
"""The coarse distance's weight in the map; 0.1 to 0.6 do nearly alike on the images of `docs/results.md`."""

SEGMENTED_WEIGHT = 1 / 3
"""The weight in the score of what is segmented; chosen on the images of `docs/results.md` and of two more sets."""

SHARED = 0.1
"""Share of the coarse covariances that all positions have in common: a place may be altered nearly every time."""

MOST_CHANNELS = 128
"""Most channels of a scale that are looked at."""


class Calibration(nn.Module):
    """Map and score from pyramids that should equal the teacher's, and a segmented mask.

    Args:
        teacher: the pyramid that the others are compared with.
        others: how many others there are.
        smooth: filter of map and score.
        image_size: height and width of the images.
    """

    def __init__(self, teacher: Pyramid, others: int, smooth: GaussianBlur, image_size: Sequence[int]) -> None:
        super().__init__()
        self.smooth = smooth
        height, width = image_size
        positions = [(height // stride) * (width // stride) for stride in teacher.strides]
        kept = [len(range(0, channels, _thinning(channels))) for channels in teacher.channels]
        self.scales = nn.ModuleList(PositionGaussians(*shape) for shape in zip(positions, kept, strict=True))
        self.coarse = PositionGaussians(positions[-1], others * kept[-1])
        self.standardise = Standardisation(2)

    def forward(self, teacher: Sequence[Tensor], others: Sequence[Sequence[Tensor]], mask: Tensor) -> Prediction:
        """Map and score: the first peak of `measure` and a third of the second, in spreads above good parts' own.

        Args:
            mask: the segmented mask, (B, 1, H, W) in [0, 1].
        """
        anomaly_map, peaks = self.measure(teacher, others, mask)
        unusual, segmented = self.standardise(peaks).unbind(dim=1)
        return Prediction(anomaly_map, unusual + SEGMENTED_WEIGHT * segmented)

    def measure(
        self, teacher: Sequence[Tensor], others: Sequence[Sequence[Tensor]], mask: Tensor, seen: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map D · mask + 0.3 · C, and the peaks (B, 2) of M_3 / sqrt(C_3) and of D · mask, all smoothed.

        D = sqrt(Σ_i M_i² / Σ_i C_i) over the scales i of the first of the others; C likewise, of all of them at the
        coarsest scale. D · mask has sharp edges; C finds what the mask misses, without a halo. Of the peaks, the first
        tells parts apart where good ones look alike, the second where they do not and defects do.

        Args:
            seen: whether the spreads of M_i come from these very parts; each is then measured as if it had been left
                out. Parts that were learnt from would else look far more alike than the next good one.
        """
        squares = []
        for features, recovered, gaussians in zip(teacher, others[0], self._scales(), strict=True):
            distances = gaussians(_differences(features, recovered))
            distances = gaussians.left_out(distances) if seen else distances
            squares.append(_as_map(distances.square(), features, mask))
        dimensions = [gaussians.mean.shape[1] for gaussians in self._scales()]
        unusual = self.smooth((squares[-1] / dimensions[-1]).sqrt())
        segmented = self.smooth((torch.stack(squares).sum(dim=0) / sum(dimensions)).sqrt() * mask)
        coarse = _as_map(self.coarse(_coarse_differences(teacher, others)).square(), teacher[-1], mask)
        coarse = self.smooth((coarse / self.coarse.mean.shape[1]).sqrt())
        peaks = torch.cat([unusual, segmented], dim=1).amax(dim=(2, 3))
        return segmented + COARSE_WEIGHT * coarse, peaks

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums of all scales over no good parts, by "scale name"."""
        return joined(scale.empty_sums() for scale in self._scales())

    def add(self, sums: Mapping[str, Tensor], teacher: Sequence[Tensor], recovered: Sequence[Tensor]) -> None:
        """Add the differences on a batch of good parts to the sums, in place."""
        for i, (features, others) in enumerate(zip(teacher, recovered, strict=True)):
            PositionGaussians.add(of_part(sums, i), _differences(features, others))

    def conclude(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Means and whitening factors of all scales from the sums."""
        for i, scale in enumerate(self._scales()):
            scale.conclude(of_part(sums, i), ridge, relative=True)

    @staticmethod
    def add_surroundings(
        sums: Mapping[str, Tensor], teacher: Sequence[Tensor], others: Sequence[Sequence[Tensor]], mask: Tensor
    ) -> None:
        """Add the coarse differences on a batch of altered parts to the sums, in place, where nothing is altered.

        Args:
            sums: those of `coarse`.
            mask: G, (B, 1, H, W) of 0 and 1: where the parts are altered.
        """
        altered = F.adaptive_max_pool2d(mask, teacher[-1].shape[-2:]).flatten(1).T
        PositionGaussians.add(sums, _coarse_differences(teacher, others), altered == 0)

    def conclude_surroundings(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Mean and whitening factors of the coarse distance from the sums."""
        self.coarse.conclude(sums, ridge, relative=True, shared=SHARED)

    def _scales(self) -> list[PositionGaussians]:
        return cast("list[PositionGaussians]", list(self.scales))


def _as_map(values: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """Values (B, P) at the positions of `features` as a map (B, 1, H, W) of the mask's size."""
    return upsample(values.view(-1, 1, *features.shape[-2:]), mask.shape[-2:])


def _coarse_differences(teacher: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    """Differences (P, B, others · D) of all others from the teacher at the coarsest scale."""
    return torch.cat([_differences(teacher[-1], other[-1]) for other in others], dim=2)


def _differences(features: Tensor, others: Tensor) -> Tensor:
    """Differences (H·W, B, D) of two features' unit vectors, thinned out: |difference|² / 2 = 1 - cos."""
    with full_precision(features):
        difference = F.normalize(features.float(), dim=1) - F.normalize(others.float(), dim=1)
        return difference[:, :: _thinning(features.shape[1])].flatten(2).permute(2, 0, 1)


def _thinning(channels: int) -> int:
    """Every how many channels one is calibrated: a covariance of 1,024 channels at each position would be 1 GB."""
    return -(-channels // MOST_CHANNELS)
