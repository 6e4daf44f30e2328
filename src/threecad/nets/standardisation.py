"""Values in units of their spread over good parts (ours; an option of SimpleNet, UniAD, RealNet and CFRG)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LEAST_SHARE = 0.01  # of the mean variance: a channel that is constant on good parts has no spread to measure with
LEAST_VARIANCE = 1e-8  # where all values are constant


class Standardisation(nn.Module):
    """x -> (x - mean) / spread for each of D values; the identity until fitted.

    Attributes:
        mean: (D,) over good parts.
        spread: (D,), the standard deviation over good parts, but not below a tenth of their root mean square.

    Args:
        values: D.
        least_share: least variance of a value as a share of the mean variance; 0 where the values' units differ.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, values: int, least_share: float = LEAST_SHARE) -> None:
        super().__init__()
        self.least_share = least_share
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("spread", torch.ones(values))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) in their units."""
        return (vectors - self.mean) / self.spread

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums of no vectors, float64."""
        shapes = {"count": (), "sum": self.mean.shape, "square": self.mean.shape}
        return {name: self.mean.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    @staticmethod
    def add(sums: Mapping[str, Tensor], vectors: Tensor) -> None:
        """Add vectors (..., D) to the sums, in place."""
        vectors = vectors.flatten(0, -2).double()
        sums["count"].add_(len(vectors))
        sums["sum"].add_(vectors.sum(dim=0))
        sums["square"].add_(vectors.square().sum(dim=0))

    def conclude(self, sums: Mapping[str, Tensor]) -> None:
        """Mean and spread from the sums."""
        mean = sums["sum"] / sums["count"]
        variance = (sums["square"] / sums["count"] - mean.square()).clamp_min(LEAST_VARIANCE)
        self.mean.copy_(mean)
        self.spread.copy_(variance.clamp_min(self.least_share * variance.mean()).sqrt())
