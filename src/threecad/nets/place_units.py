"""In what distances are measured at each place of a part: how much good parts differ there (ours; CFRG)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threecad.nets.gaussians import LEAST_VARIANCE

LEAST_SHARE = 0.01  # of the mean variance: least square of a unit, where good parts do not differ at all


class PlaceUnits(nn.Module):
    """A unit of distance at each of P places, about 1; exactly 1 until fitted.

    Args:
        positions: P.
        values: D, length of a patch's vector.

    Attributes:
        mean: of the patches at each place, (P, D).
        scatter: the sum of their squared distances from it, (P,).
        count: how many they are, (P,).
    """

    mean: Tensor
    scatter: Tensor
    count: Tensor

    def __init__(self, positions: int, values: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, values))
        self.register_buffer("scatter", torch.ones(positions))
        self.register_buffer("count", torch.ones(positions))

    def forward(self) -> Tensor:
        """The units, (P,): the spread at each place, in terms of that of all."""
        return self._units(self.scatter / self.count)

    def without(self, vectors: Tensor, counted: Tensor) -> Tensor:
        """The units (P,) as they would be without a part.

        Without x, the scatter about the mean is less by |x - μ|² N / (N - 1).

        Args:
            vectors: x, the part's patches, (P, D).
            counted: at which places they are among the patches of the fit, (P,) of bool.
        """
        left = (self.count - counted.float()).clamp_min(1)
        moved = counted * (vectors - self.mean).square().sum(dim=1) * self.count / left
        return self._units((self.scatter - moved).clamp_min(0) / left)

    def learn(self, patches: Tensor) -> None:
        """Fit to good parts' patches (P, rows, D)."""
        mean = patches.mean(dim=1)
        self.mean.copy_(mean)
        self.scatter.copy_((patches - mean.unsqueeze(1)).square().sum(dim=(1, 2)))
        self.count.fill_(patches.shape[1])

    def _units(self, variance: Tensor) -> Tensor:
        relative = variance / variance.mean().clamp_min(LEAST_VARIANCE)
        return relative.clamp_min(LEAST_SHARE).sqrt()
