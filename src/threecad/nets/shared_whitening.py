"""Patches in units of how good parts differ at one and the same place, by one covariance for all places (ours)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threecad.nets.gaussians import LEAST_VARIANCE, identity, whitening
from threecad.nets.maps import full_precision

WITH_PART = 1e-4  # share of the covariance that stays as it is with the part: one direction could be that part's alone
PLACES_AT_ONCE = 64  # whose patches' covariance is added up together


class SharedWhitening(nn.Module):
    """x -> x W, where W W^T = Σ^-1; the identity until fitted.

    Args:
        values: D, length of a patch's vector.
        ridge: share of the mean variance that is added to every variance.

    Attributes:
        factor: W, (D, D).
        least: what was added to every variance, ().
        degrees: by how much the sum of all outer products was divided for Σ, ().
    """

    factor: Tensor
    least: Tensor
    degrees: Tensor

    def __init__(self, values: int, ridge: float) -> None:
        super().__init__()
        self.ridge = ridge
        self.register_buffer("factor", torch.eye(values))
        self.register_buffer("least", torch.zeros(()))
        self.register_buffer("degrees", torch.ones(()))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D), whitened."""
        with full_precision(vectors):
            return vectors @ self.factor

    def learn(self, patches: Tensor) -> None:
        """Fit to good parts' patches (P, rows, D): Σ is their covariance about the mean of their own place."""
        scatter, degrees = patches.new_zeros(len(self.factor), len(self.factor), dtype=torch.float64), 0
        for some in patches.split(PLACES_AT_ONCE):
            away = (some - some.mean(dim=1, keepdim=True)).flatten(0, 1)
            scatter += away.T @ away
            degrees += len(away) - len(some)
        sigma = scatter / max(degrees, 1)
        least = self.ridge * sigma.diagonal().mean().clamp_min(LEAST_VARIANCE)
        self.factor.copy_(whitening((sigma + least * identity(sigma)).unsqueeze(0))[0])
        self.least.copy_(least)
        self.degrees.fill_(max(degrees, 1))

    def without(self, away: Tensor, count: Tensor) -> Tensor:
        """T (D, D): x W T is as long as x whitened by the covariance as it would be without a part.

        Without x, the scatter at a place is less by (x - μ)(x - μ)^T N / (N - 1).

        Args:
            away: (x - μ) W, from the mean of each place, of the places whose patch of the part is known, (K, D).
            count: N at those places, the part included, (K,).
        """
        away, factor = away.double(), self.factor.double()
        weight = (count / (count - 1).clamp_min(1)).double().unsqueeze(1)
        added = self.least.double() * factor.T @ factor
        sigma, left = added, self.degrees - len(away)
        if left > 0:  # else nothing is left of how parts differ, but for what rounding leaves of it
            scatter = self.degrees.double() * (identity(added) - added) - (weight * away).T @ away
            sigma = scatter / left + added
        return whitening(sigma.lerp(identity(sigma), WITH_PART).unsqueeze(0))[0].to(self.factor)
