"""A Gaussian a position: vectors left out of it, and what a position borrows from the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from threecad.nets.gaussians import PositionGaussians, borrowed_share


def fitted(vectors: Tensor, ridge: float, counted: Tensor | None = None, borrow: bool = False) -> PositionGaussians:
    gaussians = PositionGaussians(len(vectors), vectors.shape[2])
    sums = gaussians.empty_sums()
    gaussians.add(sums, vectors, counted)
    gaussians.conclude(sums, ridge, borrow=borrow)
    return gaussians


@pytest.mark.parametrize("dimensions", [4, 20])
def test_vectors_are_as_far_as_from_a_fit_without_the_one_left_out(dimensions: int) -> None:
    """Also with more dimensions than vectors, where the difference is far below what float32 resolves."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 12, dimensions, generator=generator)
    others = vectors + torch.randn(1, 12, dimensions, generator=generator)
    gaussians = fitted(vectors, ridge=0.1)
    seen = vectors[0].double().numpy()
    for tested, found in ((vectors, gaussians.left_out(vectors)), (others, gaussians.left_out(others, vectors))):
        for i in range(12):
            rest = np.delete(seen, i, axis=0)
            away = tested[0, i].double().numpy() - rest.mean(axis=0)
            sigma = np.cov(rest, rowvar=False) * 10 / 11 + 0.1 * np.eye(dimensions)
            np.testing.assert_allclose(found[i, 0], np.sqrt(away @ np.linalg.inv(sigma) @ away), rtol=1e-3)


def test_what_comes_from_all_positions_stays_when_a_vector_is_left_out() -> None:
    vectors = torch.randn(5, 9, 3, generator=torch.Generator().manual_seed(0))
    gaussians = fitted(vectors, ridge=1e-3, borrow=True)
    exact = vectors.double().numpy()
    centred = (exact - exact.mean(axis=1, keepdims=True)).reshape(-1, 3)
    together = centred.T @ centred / 40 + 1e-3 * np.eye(3)
    share = float(gaussians.shared[2])
    assert share > 0
    for i in range(9):
        rest = np.delete(exact[2], i, axis=0)
        own = np.cov(rest, rowvar=False) * 7 / 8 + 1e-3 * np.eye(3)
        away = exact[2, i] - rest.mean(axis=0)
        expected = np.sqrt(away @ np.linalg.inv((1 - share) * own + share * together) @ away)
        np.testing.assert_allclose(gaussians.left_out(vectors)[i, 2], expected, rtol=1e-3)


@pytest.mark.parametrize("count", [40, 400])
def test_a_position_borrows_about_what_brings_it_nearest_to_its_true_covariance(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mix = torch.eye(12, dtype=torch.float64) + 0.15 * draw(12, 12)
    vectors = draw(30, count, 12) @ mix.T
    centred = vectors - vectors.mean(dim=1, keepdim=True)
    sigma = centred.transpose(1, 2) @ centred / (count - 1)
    identity, shares = torch.eye(12, dtype=torch.float64), torch.linspace(0, 1, 101, dtype=torch.float64)
    errors = [(sigma.lerp(identity, share) - mix @ mix.T).square().sum() for share in shares]
    best = float(shares[torch.stack(errors).argmin()])
    found = float(borrowed_share(sigma, identity, torch.full((30,), float(count), dtype=torch.float64)).mean())
    assert found == pytest.approx(best, abs=0.2)


def test_the_fewer_vectors_a_position_has_the_more_it_borrows() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 500, 4, generator=generator) * torch.tensor([2.0, 2.0, 0.5, 1.0]).view(4, 1, 1)
    counted = torch.arange(500) < torch.tensor([500, 20, 500, 0]).unsqueeze(1)
    gaussians = fitted(vectors, ridge=1e-6, counted=counted, borrow=True)
    assert gaussians.shared[0] < 0.1
    assert 2 * gaussians.shared[0] < gaussians.shared[1] < 1
    assert gaussians.shared[3] == 1  # never seen: all that it has is the others' covariance


def test_positions_that_do_not_differ_share_their_covariance() -> None:
    vectors = torch.randn(64, 20, 6, generator=torch.Generator().manual_seed(0))
    assert fitted(vectors, ridge=1e-6, borrow=True).shared.mean() > 0.8
