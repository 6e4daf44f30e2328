"""A Gaussian at each position: means and covariances from streaming sums, distances from a whitening factor.

PaDiM describes good parts by it, CFRG calibrates its distances with it. Sums of x and x x^T are additive over batches
and processes and need the memory of one covariance a position, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from threecad.nets.maps import full_precision

LEAST_VARIANCE = 1e-8  # mean variance assumed for features about 1 long where all images are alike, or there is one
LEAST_DENOMINATOR = {torch.float32: 1e-4, torch.float64: 1e-7}  # lower bound of the denominator in `left_out`
POSITIONS_AT_ONCE = 512  # whose Σ are inverted together, in float64


class PositionGaussians(nn.Module):
    """Mean and whitening factor of vectors at each of P positions.

    Attributes:
        mean: μ, (P, D).
        factor: W with W W^T = Σ^-1, (P, D, D); the identity until fitted.
        count: N, how many vectors each position was fitted to, (P,).
    """

    mean: Tensor
    factor: Tensor
    count: Tensor

    def __init__(self, positions: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, dimensions))
        self.register_buffer("factor", torch.eye(dimensions).repeat(positions, 1, 1))
        self.register_buffer("count", torch.zeros(positions))

    def forward(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distances (B, P) of vectors (P, B, D); in float64 where they are, few positions at once."""
        if vectors.dtype != torch.float64:
            return mahalanobis(vectors, self.mean, self.factor)
        chunks = torch.arange(len(self.mean), device=self.mean.device).split(POSITIONS_AT_ONCE)
        exact = [mahalanobis(vectors[some], self.mean[some].double(), self.factor[some].double()) for some in chunks]
        return torch.cat(exact, dim=1)

    def left_out(self, distances: Tensor) -> Tensor:
        """Distances (B, P) of vectors that the fit has seen, as if each had been left out of it.

        Without x, μ moves by (x - μ) / (N - 1) and the scatter loses a matrix of rank one, so that (Sherman and
        Morrison) M² becomes (N / (N - 1))² M² / (1 - M² N / (N - 1)²); the divisor of Σ stays. Where there are fewer
        vectors than dimensions, the difference is as small as 1 / M²: give distances in float64 there.
        """
        count = self.count.clamp_min(2).to(distances.dtype)
        square = distances.square()
        least = LEAST_DENOMINATOR[distances.dtype]
        denominator = (1 - square * count / (count - 1).square()).clamp_min(least)
        return count / (count - 1) * (square / denominator).sqrt()

    def empty_sums(self) -> dict[str, Tensor]:
        """Sums of no vectors, float64."""
        shapes = {"count": self.mean.shape[:1], "sum": self.mean.shape, "product": self.factor.shape}
        return {name: self.mean.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    @staticmethod
    def add(sums: Mapping[str, Tensor], vectors: Tensor, counted: Tensor | None = None) -> None:
        """Add vectors (P, B, D) to the sums, in place; if given, only those `counted`, (P, B) of bool."""
        vectors = vectors.double()
        if counted is None:
            sums["count"].add_(vectors.shape[1])
        else:
            sums["count"].add_(counted.sum(dim=1))
            vectors = vectors * counted.unsqueeze(2)
        sums["sum"].add_(vectors.sum(dim=1))
        sums["product"].baddbmm_(vectors.transpose(1, 2), vectors)

    def conclude(self, sums: Mapping[str, Tensor], ridge: float, relative: bool = False, shared: float = 0.0) -> None:
        """Means and factors from sums.

        Args:
            ridge: added to the diagonal of Σ.
            relative: whether `ridge` is a share of the mean variance.
            shared: share of every Σ that is the covariance of all positions together, for positions rarely seen.
        """
        count = sums["count"].clamp_min(1)
        mean = sums["sum"] / count.unsqueeze(1)
        self.mean.copy_(mean)
        self.count.copy_(sums["count"])
        if relative:
            variance = sums["product"].diagonal(dim1=1, dim2=2) / count.unsqueeze(1) - mean.square()
            ridge *= float(variance.mean().clamp_min(LEAST_VARIANCE))
        together = covariance_of_all(sums["product"], mean, count, ridge) if shared else None
        for part in torch.arange(len(mean), device=mean.device).split(POSITIONS_AT_ONCE):
            sigma = covariance(sums["product"][part], mean[part], count[part], ridge)
            if together is not None:
                sigma = sigma.lerp(together, shared)
            self.factor[part] = whitening(sigma).float()


def covariance(product: Tensor, mean: Tensor, count: Tensor, ridge: float) -> Tensor:
    """Σ = 1/(N-1) Σ_k (x_k - μ)(x_k - μ)^T + ε I (PaDiM, eq. 1) from sums, (P, D, D); ε I alone where N is 1.

    Args:
        product: Σ_k x_k x_k^T, (P, D, D) float64.
        mean: μ, (P, D) float64.
        count: N, one for all or one a position, (P,).
    """
    count = count.view(-1, 1, 1)
    scatter = product - count * mean.unsqueeze(2) * mean.unsqueeze(1)
    return scatter / (count - 1).clamp_min(1) + ridge * identity(mean)


def covariance_of_all(product: Tensor, mean: Tensor, count: Tensor, ridge: float) -> Tensor:
    """The covariance about each position's own mean, over all positions together, plus ε I: (D, D)."""
    scatter = product.sum(dim=0) - (count.unsqueeze(1) * mean).T @ mean
    return scatter / (count - 1).sum().clamp_min(1) + ridge * identity(mean)


def identity(vectors: Tensor) -> Tensor:
    """I, (D, D), for vectors or matrices (..., D) and of their kind."""
    return torch.eye(vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)


def whitening(sigma: Tensor) -> Tensor:
    """W with W W^T = Σ^-1, upper triangular: the inverse of Σ's Cholesky factor, transposed. (P, D, D) -> (P, D, D)."""
    return torch.linalg.solve_triangular(
        torch.linalg.cholesky(sigma), identity(sigma).expand_as(sigma), upper=False
    ).transpose(1, 2)


def mahalanobis(vectors: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """M(x) = sqrt((x - μ)^T Σ^-1 (x - μ)) = |W^T (x - μ)| (PaDiM, eq. 2) of vectors (P, B, D), as (B, P)."""
    with full_precision(vectors):
        whitened = (vectors - mean.unsqueeze(1)) @ factor
        return torch.linalg.vector_norm(whitened, dim=2).T
