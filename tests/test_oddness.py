"""How odd a part is: what good parts vary by, few patches that lie far off, and many that lie a little off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from threecad.nets.oddness import Oddness

PLACES = 256


def distances(count: int, seed: int = 0) -> Tensor:
    """Of good parts, (count, 256): places of the second half vary ten times as much; parts differ as wholes, too."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.where(torch.arange(PLACES) < PLACES // 2, 0.1, 1.0)
    whole = 0.2 * torch.randn(count, 1, generator=generator)
    return 10 + spread * (torch.randn(count, PLACES, generator=generator) + whole)


@pytest.fixture(scope="module")
def learnt() -> Oddness:
    oddness = Oddness(PLACES)
    oddness.learn(distances(200))
    return oddness


def scores(oddness: Oddness, of: Tensor) -> Tensor:
    return oddness(of)[1]


def test_until_fitted_z_is_the_distance_and_the_score_follows_it() -> None:
    oddness, of = Oddness(4), torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    z, score = oddness(of)
    assert torch.equal(z, of)
    torch.testing.assert_close(score, torch.tensor([6.0, 4.5, 3.0]).logsumexp(dim=0, keepdim=True))
    oddness.learn(of[:1])  # one part alone
    assert torch.equal(oddness(of)[0], of)


def test_the_same_distance_is_odder_where_good_parts_vary_less(learnt: Oddness) -> None:
    z = learnt(torch.full((1, PLACES), 11.0))[0][0]
    steady, varying = z[: PLACES // 2].mean(), z[PLACES // 2 :].mean()
    assert steady > 5 * varying and float(varying) == pytest.approx(1, rel=0.1)


def test_z_and_score_are_those_of_the_formula(learnt: Oddness) -> None:
    good, tested = distances(200).double().numpy(), distances(20, seed=1).double().numpy()

    def largest(z: np.ndarray) -> np.ndarray:
        ranked = np.sort(z, axis=1)[:, ::-1]
        return np.stack([ranked[:, :k].mean(axis=1) for k in (1, 2, 4, 8, 16, 32, 64, 128, 256)], axis=1)

    left_out = []  # of every good part, by the others alone
    k = float(learnt.distances.prior)
    ridge = 0.01 * good.var(axis=0).mean()
    common = good.var(axis=0, ddof=1).mean() + ridge
    for index in range(200):
        others = np.delete(good, index, axis=0)
        own = others.var(axis=0, ddof=1) * 198 / 199 + ridge
        left_out.append((good[index] - others.mean(axis=0)) / np.sqrt((199 * own + k * common) / (199 + k)))
    usual = largest(np.stack(left_out))
    own = good.var(axis=0, ddof=1) + ridge
    z = (tested - good.mean(axis=0)) / np.sqrt((199 * own + k * common) / (199 + k))
    spread = np.sqrt(usual.var(axis=0, ddof=1) + 0.01 * usual.var(axis=0).mean())
    expected = np.log(np.exp((largest(z) - usual.mean(axis=0)) / spread).sum(axis=1))
    found_z, found = learnt(torch.tensor(tested, dtype=torch.float32))
    np.testing.assert_allclose(found_z, z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_a_few_patches_far_off_and_many_a_little_off_are_both_odd(learnt: Oddness) -> None:
    good = scores(learnt, distances(200, seed=1))
    few, many = distances(200, seed=1), distances(200, seed=1)
    few[:, 7] += 0.8
    many[:, PLACES // 2 :] += 1.2  # where single good patches differ by as much
    for bad in (few, many):
        assert (scores(learnt, bad) > good.quantile(0.95)).float().mean() > 0.9


@pytest.mark.parametrize(("count", "least"), [(5, 0.3), (40, 0.42)])
def test_good_parts_that_were_learnt_from_look_as_good_parts_to_come_or_where_few_a_little_odder(
    count: int, least: float
) -> None:
    ranks, learnt_from = [], torch.ones(count, dtype=torch.bool)
    for seed in range(40):
        oddness, good = Oddness(PLACES), distances(count, seed=seed)
        oddness.learn(good)
        _, left_out = oddness.left_out(good, learnt_from)
        to_come = scores(oddness, distances(50, seed=1000 + seed))
        assert scores(oddness, good).mean() < left_out.mean()
        ranks.append(float((left_out < to_come.unsqueeze(1)).float().mean()))
    assert least < np.mean(ranks) < 0.54


def test_a_part_that_was_not_learnt_from_is_left_out_of_nothing(learnt: Oddness) -> None:
    new = distances(2, seed=1)
    z, score = learnt.left_out(new, torch.tensor([False, True]))
    expected_z, expected = learnt(new)
    assert torch.equal(z[0], expected_z[0]) and score[0] == expected[0]
    assert not torch.equal(z[1], expected_z[1])


def test_parts_that_are_all_alike_leave_every_score_finite() -> None:
    oddness = Oddness(PLACES)
    oddness.learn(torch.ones(6, PLACES))
    assert scores(oddness, distances(3)).isfinite().all()
