"""A Gaussian at each position: means and covariances from streaming sums, distances from a whitening factor.

PaDiM describes good parts by it, CFRG calibrates its distances with it. Sums of x and x x^T are additive over batches
and processes and need the memory of one covariance a position, whatever the number of images.

A position may borrow from the others: its covariance is then drawn towards that of all positions together, the more the
fewer vectors it has seen and the less it differs from the others (`borrowed_share`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from threecad.nets.maps import full_precision

LEAST_VARIANCE = 1e-8  # mean variance assumed for features about 1 long where all images are alike, or there is one
LEAST_DENOMINATOR = 1e-7  # in `left_out`
BORROWING_ROUNDS = 20
POSITIONS_AT_ONCE = 512  # whose Σ are inverted together, in float64


class PositionGaussians(nn.Module):
    """Mean and whitening factor of vectors at each of P positions.

    Attributes:
        mean: μ, (P, D).
        factor: W with W W^T = Σ^-1, (P, D, D); the identity until fitted.
        count: N, how many vectors each position was fitted to, (P,).
        shared: which share of its Σ is the covariance of all positions together, (P,).
    """

    mean: Tensor
    factor: Tensor
    count: Tensor
    shared: Tensor

    def __init__(self, positions: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, dimensions))
        self.register_buffer("factor", torch.eye(dimensions).repeat(positions, 1, 1))
        self.register_buffer("count", torch.zeros(positions))
        self.register_buffer("shared", torch.zeros(positions))

    def forward(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distances (B, P) of vectors (P, B, D)."""
        return mahalanobis(vectors, self.mean, self.factor)

    def left_out(self, vectors: Tensor, learnt: Tensor | None = None) -> Tensor:
        """Mahalanobis distances (B, P) of vectors (P, B, D), each as if one that the fit has seen had been left out.

        Without x, μ moves by (x - μ) / (N - 1), and the position's own share 1 - λ of Σ loses a matrix of rank one; its
        divisor stays, and so does what comes from all positions. With u = W^T (x - μ), v = W^T (y - μ) + u / (N - 1)
        and c = (1 - λ) N / (N - 1)², the distance of y is then (Sherman and Morrison)

            M² = v·v + c (v·u)² / (1 - c u·u)

        Where there are fewer vectors than dimensions, the denominator is as small as 1 / M²: all is in float64.

        Args:
            learnt: x, (P, B, D); the vectors themselves if not given.
        """
        found = []
        for some in torch.arange(len(self.mean), device=self.mean.device).split(POSITIONS_AT_ONCE):
            mean, factor = self.mean[some].double().unsqueeze(1), self.factor[some].double()
            count = self.count[some].double().clamp_min(2).unsqueeze(1)
            with full_precision(vectors):
                away = (vectors[some].double() - mean) @ factor
                lost = away if learnt is None else (learnt[some].double() - mean) @ factor
            away = away + lost / (count - 1).unsqueeze(2)
            c = (1 - self.shared[some].double().unsqueeze(1)) * count / (count - 1).square()
            denominator = (1 - c * lost.square().sum(dim=2)).clamp_min(LEAST_DENOMINATOR)
            along = (away * lost).sum(dim=2)
            found.append((away.square().sum(dim=2) + c * along.square() / denominator).sqrt())
        return torch.cat(found).T

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

    def conclude(self, sums: Mapping[str, Tensor], ridge: float, relative: bool = False, borrow: bool = False) -> None:
        """Means and factors from sums.

        Args:
            ridge: added to the diagonal of Σ.
            relative: whether `ridge` is a share of the mean variance.
            borrow: whether each Σ is drawn towards the covariance of all positions together.
        """
        count = sums["count"].clamp_min(1)
        mean = sums["sum"] / count.unsqueeze(1)
        self.mean.copy_(mean)
        self.count.copy_(sums["count"])
        if relative:
            variance = sums["product"].diagonal(dim1=1, dim2=2) / count.unsqueeze(1) - mean.square()
            ridge *= float(variance.mean().clamp_min(LEAST_VARIANCE))
        together = _covariance_of_all(sums["product"], mean, count, ridge) if borrow else None
        for part in torch.arange(len(mean), device=mean.device).split(POSITIONS_AT_ONCE):
            sigma = covariance(sums["product"][part], mean[part], count[part], ridge)
            if together is not None:
                shared = borrowed_share(sigma, together, count[part])
                sigma = sigma.lerp(together, shared.view(-1, 1, 1))
                self.shared[part] = shared.float()
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
    return scatter / (count - 1).clamp_min(1) + ridge * _identity(mean)


def borrowed_share(sigma: Tensor, together: Tensor, count: Tensor) -> Tensor:
    """λ, the share that each position's Σ had better take from that of all positions together: (P,) in [0, 1].

    In coordinates in which the covariance of all positions is the identity, the squared error of (1 - λ) S + λ I is
    least at λ = E|S - Σ|² / E|S - I|². Of Gaussian vectors E|S - Σ|² is (tr Σ² + tr² Σ) / (N - 1). As Σ is not known,
    it is taken to be (1 - λ) S + λ I, again and again, from λ = 1 on, as in the "oracle-approximating" shrinkage of
    Chen, Wiesel, Eldar and Hero (2010). So a position that has seen little, or is like all others, borrows most.

    Args:
        sigma: S of each position, (P, D, D).
        together: of all, (D, D).
        count: N of each position, (P,).
    """
    whiten = whitening(together.unsqueeze(0))
    own = whiten.transpose(1, 2) @ sigma @ whiten
    trace, square, dimensions = own.diagonal(dim1=1, dim2=2).sum(dim=1), own.square().sum(dim=(1, 2)), own.shape[-1]
    away = (square - 2 * trace + dimensions).clamp_min(torch.finfo(own.dtype).tiny)  # |S - I|²
    share, freedom = torch.ones_like(trace), (count - 1).clamp_min(1)
    for _ in range(BORROWING_ROUNDS):
        rest = 1 - share
        of_square = rest.square() * square + 2 * rest * share * trace + share.square() * dimensions
        of_trace = rest * trace + share * dimensions
        share = ((of_square + of_trace.square()) / (freedom * away)).clamp_max(1)
    return share


def _covariance_of_all(product: Tensor, mean: Tensor, count: Tensor, ridge: float) -> Tensor:
    """The covariance about each position's own mean, over all positions together, plus ε I: (D, D)."""
    scatter = product.sum(dim=0) - (count.unsqueeze(1) * mean).T @ mean
    return scatter / (count - 1).sum().clamp_min(1) + ridge * _identity(mean)


def _identity(vectors: Tensor) -> Tensor:
    return torch.eye(vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)


def whitening(sigma: Tensor) -> Tensor:
    """W with W W^T = Σ^-1, upper triangular: the inverse of Σ's Cholesky factor, transposed. (P, D, D) -> (P, D, D)."""
    return torch.linalg.solve_triangular(
        torch.linalg.cholesky(sigma), _identity(sigma).expand_as(sigma), upper=False
    ).transpose(1, 2)


def mahalanobis(vectors: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """M(x) = sqrt((x - μ)^T Σ^-1 (x - μ)) = |W^T (x - μ)| (PaDiM, eq. 2) of vectors (P, B, D), as (B, P)."""
    with full_precision(vectors):
        whitened = (vectors - mean.unsqueeze(1)) @ factor
        return torch.linalg.vector_norm(whitened, dim=2).T
