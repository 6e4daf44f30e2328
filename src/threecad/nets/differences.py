"""How far the features of a part's branches lie from the teacher's, in units of how far they do where nothing is wrong.

Some distance remains on good parts too, more at some positions than at others. Here every position has a mean μ and a
covariance Σ of the difference d between two unit feature vectors, and the distance is that of Mahalanobis,
M = sqrt((d - μ)^T Σ^-1 (d - μ)). Where nothing is wrong, M² is about the number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians
from threecad.nets.halves import HALVES, from_halves, half_of
from threecad.nets.maps import full_precision, upsample
from threecad.nets.sums import joined, of_part

MOST_CHANNELS = 128
"""Most channels of a scale that a distance uses. A Σ of 1,024 channels at each position would take 1 GB."""


class Comparison(NamedTuple):
    """The features of one batch of images that are compared, and the mask segmented from them."""

    teacher: Sequence[Tensor]  # [(B, C_i, H_i, W_i)], fine to coarse
    recovered: Sequence[Tensor]  # likewise: what should equal the teacher's features at every scale
    coarsest: Sequence[Tensor]  # one (B, C_3, H_3, W_3) a branch: what should equal the teacher's coarsest features
    mask: Tensor  # (B, 1, H, W) in [0, 1]


class FineDistances(nn.Module):
    """Distances of the recovered features from the teacher's at every scale, by what they are on good parts.

    Args:
        positions: P_i of each scale.
        dimensions: how many of its channels are used.
    """

    def __init__(self, positions: Sequence[int], dimensions: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PositionGaussians(*shape) for shape in zip(positions, dimensions, strict=True))

    def forward(self, comparison: Comparison, learnt: Comparison | None = None) -> tuple[Tensor, Tensor]:
        """The distance at all scales together, and that at the coarsest: maps (B, 1, H, W), about 1 on good parts.

        Args:
            learnt: of the good parts that were measured, or from which those measured were made, if the fit has seen
                them. Each is measured as if it had been left out.
        """
        squares, dimensions = [], []
        for index, scale in enumerate(self.gaussians()):
            differences = self._differences(comparison, index)
            if learnt is None:
                distance = scale(differences)
            else:
                seen = None if learnt is comparison else self._differences(learnt, index)
                distance = scale.left_out(differences, seen).float()
            squares.append(_as_map(distance.square(), comparison.teacher[index].shape, comparison.mask))
            dimensions.append(scale.mean.shape[1])
        together = (torch.stack(squares).sum(dim=0) / sum(dimensions)).sqrt()
        return together, (squares[-1] / dimensions[-1]).sqrt()

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums over no parts."""
        return joined(scale.empty_sums() for scale in self.gaussians())

    def add(self, sums: Mapping[str, Tensor], comparison: Comparison) -> None:
        """Add the differences on good parts to the sums, in place."""
        for index, scale in enumerate(self.gaussians()):
            scale.add(of_part(sums, index), self._differences(comparison, index))

    def conclude(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the Gaussians to the sums; `ridge` is the share of the mean variance added to each variance."""
        for index, scale in enumerate(self.gaussians()):
            scale.conclude(of_part(sums, index), ridge, relative=True, borrow=True)

    def gaussians(self) -> Iterator[PositionGaussians]:
        """Those of each scale, fine to coarse."""
        return (cast(PositionGaussians, scale) for scale in self.scales)

    @staticmethod
    def _differences(comparison: Comparison, index: int) -> Tensor:
        return differences(comparison.teacher[index], comparison.recovered[index])


class CoarseDistance(nn.Module):
    """Distance of the features of all branches from the teacher's at the coarsest scale.

    It is fitted on altered parts, where they are not altered, in two halves of the good parts (`nets.halves`).

    Args:
        positions: P of the coarsest scale.
        dimensions: how many of its channels are used, of all branches together.
    """

    def __init__(self, positions: int, dimensions: int) -> None:
        super().__init__()
        self.halves = nn.ModuleList(PositionGaussians(positions, dimensions) for _ in range(HALVES))

    def forward(self, comparison: Comparison, learnt: Tensor | None = None) -> Tensor:
        """A map (B, 1, H, W), about 1 on good parts.

        Args:
            learnt: as of `from_halves`.
        """
        found = _coarse_differences(comparison)
        squared = from_halves([half(found).square() for half in self.gaussians()], learnt)
        return (_as_map(squared, comparison.teacher[-1].shape, comparison.mask) / found.shape[2]).sqrt()

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums over no parts."""
        return joined(half.empty_sums() for half in self.gaussians())

    def add(self, sums: Mapping[str, Tensor], image: Tensor, comparison: Comparison, altered: Tensor) -> None:
        """Add the differences on altered parts to the sums, in place, where they are not altered.

        Args:
            image: the good parts (B, 3, H, W) that were altered.
            comparison: of the altered ones.
            altered: where they are, (B, 1, H, W) of 0 and 1.
        """
        unaltered = F.adaptive_max_pool2d(altered, comparison.teacher[-1].shape[-2:]).flatten(1).T == 0
        found, halves = _coarse_differences(comparison), half_of(image)
        for index, half in enumerate(self.gaussians()):
            half.add(of_part(sums, index), found, unaltered & (halves == index))

    def conclude(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the Gaussians to the sums; a half without a part, as of a single one, takes over the other's."""
        parts = [of_part(sums, index) for index in range(HALVES)]
        for index, half in enumerate(self.gaussians()):
            own = parts[index] if parts[index]["count"].any() else parts[1 - index]
            half.conclude(own, ridge, relative=True, borrow=True)

    def gaussians(self) -> Iterator[PositionGaussians]:
        """Those of each half."""
        return (cast(PositionGaussians, half) for half in self.halves)


def differences(features: Tensor, others: Tensor) -> Tensor:
    """Differences (H·W, B, D) of the unit vectors of two features (B, C, H, W), at D evenly spaced channels."""
    with full_precision(features):
        difference = F.normalize(features.float(), dim=1) - F.normalize(others.float(), dim=1)
        return difference[:, :: channel_step(features.shape[1])].flatten(2).permute(2, 0, 1)


def channel_step(channels: int) -> int:
    """The step between channels with which at most `MOST_CHANNELS` of them are used."""
    return -(-channels // MOST_CHANNELS)


def _coarse_differences(comparison: Comparison) -> Tensor:
    """Differences (P, B, branches · D) of every branch from the teacher at the coarsest scale."""
    return torch.cat([differences(comparison.teacher[-1], branch) for branch in comparison.coarsest], dim=2)


def _as_map(values: Tensor, shape: Sequence[int], mask: Tensor) -> Tensor:
    """Values (B, P) at the positions of features of a shape (B, C, h, w) as a map (B, 1, H, W) like the mask."""
    return upsample(values.view(-1, 1, *shape[-2:]), mask.shape[-2:])
