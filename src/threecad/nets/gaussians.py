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
LEAST_SHARE = 1e-6  # of the largest variance: less in a direction is rounding
PRIORS = torch.logspace(0, 5, 101, dtype=torch.float64)  # among which the likeliest is looked for
LEAST_DENOMINATOR = {torch.float32: 1e-4, torch.float64: 1e-7}  # lower bound of the denominator in `left_out`
POSITIONS_AT_ONCE = 512  # whose Σ are decomposed together, in float64; so many also tell how much all share


class PositionGaussians(nn.Module):
    """Mean and whitening factor of vectors at each of P positions.

    Attributes:
        mean: μ, (P, D).
        factor: W with W W^T = Σ^-1, (P, D, D); the identity until fitted.
        count: N, how many vectors each position was fitted to, (P,).
        prior: k, how many vectors the covariance of all positions is worth at each of them, (); only where `shared`.

    Args:
        positions: P.
        dimensions: D.
        shared: whether each Σ is drawn towards the covariance of all positions, as far as `likeliest_prior` says.
    """

    mean: Tensor
    factor: Tensor
    count: Tensor
    prior: Tensor

    def __init__(self, positions: int, dimensions: int, shared: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, dimensions))
        self.register_buffer("factor", torch.eye(dimensions).repeat(positions, 1, 1))
        self.register_buffer("count", torch.zeros(positions))
        self.shared = shared
        self.register_buffer("prior", torch.zeros(()), persistent=shared)

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
        Morrison) M² becomes (N / (N - 1))² M² / (1 - M² N / ((N - 1) (N - 1 + k))); the divisor of Σ stays. Where k is
        0 and there are fewer vectors than dimensions, the difference is as small as 1 / M²: give distances in float64
        there.
        """
        count = self.count.clamp_min(2).to(distances.dtype)
        square = distances.square()
        least = LEAST_DENOMINATOR[distances.dtype]
        denominator = (1 - square * count / ((count - 1) * (count - 1 + self.prior))).clamp_min(least)
        return count / (count - 1) * (square / denominator).sqrt()

    def choices(self, what: str) -> list[str]:
        """How much positions share, and why, in words; `what` was seen: "good parts"."""
        if not self.shared or self.count.max() < 2:
            return []
        return [
            f"how {what} vary at a place is told by the {float(self.count.median()):.0f} seen there and, as if by "
            f"{float(self.prior):.0f} more, by all places together: the likeliest number"
        ]

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

    def conclude(self, sums: Mapping[str, Tensor], ridge: float, relative: bool = False) -> None:
        """Means and factors from sums.

        Args:
            ridge: added to the diagonal of Σ.
            relative: whether `ridge` is a share of the mean variance.
        """
        count = sums["count"].clamp_min(1)
        mean = sums["sum"] / count.unsqueeze(1)
        self.mean.copy_(mean)
        self.count.copy_(sums["count"])
        if relative:
            variance = sums["product"].diagonal(dim1=1, dim2=2) / count.unsqueeze(1) - mean.square()
            ridge *= float(variance.mean().clamp_min(LEAST_VARIANCE))
        if self.shared:
            common = covariance_of_all(sums["product"], mean, count)
            self.prior.fill_(likeliest_prior(sums["product"], mean, count, common))
            common = common + ridge * identity(mean)
            share = self.prior.double() / (count - 1 + self.prior).clamp_min(1)
        for part in torch.arange(len(mean), device=mean.device).split(POSITIONS_AT_ONCE):
            sigma = covariance(sums["product"][part], mean[part], count[part], ridge)
            if self.shared:
                sigma.lerp_(common, share[part].view(-1, 1, 1))
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


def covariance_of_all(product: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Σ_all, (D, D): the covariance about each position's own mean, over all positions together."""
    scatter = product.sum(dim=0) - (count.unsqueeze(1) * mean).T @ mean
    return scatter / (count - 1).sum().clamp_min(1)


def likeliest_prior(product: Tensor, mean: Tensor, count: Tensor, common: Tensor) -> float:
    """k under which what was seen at all positions is likeliest, if their Σ vary about the covariance of all, Σ_all.

    With the prior Σ ~ inverse Wishart(k + D + 1, k Σ_all), the mean of what may be a position's Σ, once its N vectors
    with covariance S are seen, is ((N - 1) S + k Σ_all) / (N - 1 + k). The ridge has to stay out: in it all agree.

    Args:
        product, mean, count: as in `covariance`; positions with fewer than two vectors tell nothing.
        common: Σ_all, (D, D).
    """
    told = (count >= 2).nonzero().flatten()
    variances, directions = torch.linalg.eigh(common)
    varying = variances > LEAST_SHARE * variances.max().clamp_min(LEAST_VARIANCE)
    if not len(told) or not varying.any():
        return float(PRIORS[-1])
    turn = directions[:, varying] / variances[varying].sqrt()  # to units of Σ_all, where vectors vary at all

    some = told[:: -(-len(told) // POSITIONS_AT_ONCE)]
    own = covariance(product[some], mean[some], count[some], ridge=0.0)
    seen, dimensions = count[some] - 1, turn.shape[1]
    scatter = torch.linalg.eigvalsh(turn.T @ own @ turn).clamp_min(0) * seen.unsqueeze(1)  # (P, D)
    gamma = torch.special.multigammaln

    def log_likelihood(k: Tensor) -> Tensor:
        """Up to what does not depend on k."""
        before = (k + dimensions + 1).expand_as(seen)
        after = before + seen
        fit = dimensions * before * k.log() - after * (scatter + k).log().sum(dim=1)
        return (gamma(after / 2, dimensions) - gamma(before / 2, dimensions) + fit / 2).sum()

    priors = PRIORS.to(mean.device)
    return float(priors[torch.stack([log_likelihood(k) for k in priors]).argmax()])


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
