"""How odd a part is, from how far each of its patches lies from what good parts show (ours; an option of PatchCore and
CFRG).

At one place good parts differ more than at another, and a defect may be a few patches that lie far off or many that lie
a little off. Good parts tell what is usual of both, each compared with the others alone:

    z_p   = (d_p - μ_p) / σ_p            d_p: distance of the patch at place p; μ, σ: of good parts
    S_k   = mean of the k largest z_p    for k = 1, 2, 4, … patches
    score = log Σ_k exp t_k              t_k = (S_k - m_k) / s_k; m, s: mean and spread of S over good parts

The score is the largest t and, where several are large, a little more. So neither a unit of distance nor the size of a
defect is to be chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians

RIDGE = 0.01
"""Share of the mean variance that is added to every variance, lest one be nothing where good parts do not differ."""


class Oddness(nn.Module):
    """Distances as z, and one score a part. Until fitted z is d, and t is S.

    Args:
        positions: P, patches of a part.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.counts = [2**power for power in range(positions.bit_length())]  # k
        self.distances = PositionGaussians(positions, 1, shared=True)
        self.means = PositionGaussians(len(self.counts), 1)

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, P) and score (B,) of distances (B, P)."""
        z = _standardised(self.distances, distances)
        return z, _standardised(self.means, self._means_of_largest(z)).logsumexp(dim=1)

    def left_out(self, distances: Tensor, learnt: Tensor) -> tuple[Tensor, Tensor]:
        """The same, where parts were `learnt` from, (B,) of bool, as if each had been left out."""
        z = _left_out(self.distances, distances, learnt)
        return z, _left_out(self.means, self._means_of_largest(z), learnt).logsumexp(dim=1)

    def learn(self, distances: Tensor) -> None:
        """Fit to distances (N, P) of good parts, each compared with the others; one part alone tells nothing."""
        if len(distances) < 2:
            return
        learnt = torch.ones(len(distances), dtype=torch.bool, device=distances.device)
        _fit(self.distances, distances)
        _fit(self.means, self._means_of_largest(_left_out(self.distances, distances, learnt)))

    def choices(self, what: str) -> list[str]:
        """How much places share, and why, in words; `what` was learnt from: "good parts' distances"."""
        return self.distances.choices(what)

    def _means_of_largest(self, z: Tensor) -> Tensor:
        """S, (B, K)."""
        largest = z.sort(dim=1, descending=True).values.cumsum(dim=1)
        return torch.stack([largest[:, count - 1] / count for count in self.counts], dim=1)


def _standardised(gaussians: PositionGaussians, values: Tensor) -> Tensor:
    """(x - mean) / spread of values (B, P)."""
    return (values - gaussians.mean[:, 0]) * gaussians.factor[:, 0, 0]


def _left_out(gaussians: PositionGaussians, values: Tensor, learnt: Tensor) -> Tensor:
    """The same, where they were `learnt` from, (B,), as if each had been left out of the fit."""
    units = _standardised(gaussians, values)
    return gaussians.left_out(units.abs()).copysign(units).where(learnt.unsqueeze(1), units)


def _fit(gaussians: PositionGaussians, values: Tensor) -> None:
    """Fit to values (N, P)."""
    sums = gaussians.empty_sums()
    gaussians.add(sums, values.T.unsqueeze(2))
    gaussians.conclude(sums, RIDGE, relative=True)
