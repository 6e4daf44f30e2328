"""Values in units of their spread over good parts (ours; an option of SimpleNet, UniAD, RealNet and CFRG)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LEAST_VARIANCE = 1e-8


class Standardisation(nn.Module):
    """x -> (x - mean) / spread for each of D values; the identity until fitted.

    Attributes:
        mean: (D,) over good parts.
        spread: (D,), the standard deviation over good parts.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, values: int) -> None:
        super().__init__()
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
        sums["count"] += len(vectors)
        sums["sum"] += vectors.sum(dim=0)
        sums["square"] += vectors.square().sum(dim=0)

    def conclude(self, sums: Mapping[str, Tensor]) -> None:
        """Mean and spread from the sums."""
        mean = sums["sum"] / sums["count"]
        self.mean.copy_(mean)
        self.spread.copy_((sums["square"] / sums["count"] - mean.square()).clamp_min(LEAST_VARIANCE).sqrt())
