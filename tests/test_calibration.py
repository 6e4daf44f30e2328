"""Distances in units of their spread: what is whitened by what, and what becomes of a map."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from threecad.nets.calibration import Calibration
from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.pyramid import Pyramid

SIDES, CHANNELS = (4, 2), (5, 6)
"""Grids and channels of the two scales in these tests."""


def calibration(others: int = 1) -> Calibration:
    """One for the two small scales above; maps of 64×64 px."""
    made = Calibration(Pyramid("resnet10t.c3_in1k", "random"), others, GaussianBlur(4.0), (64, 64))
    made.scales = torch.nn.ModuleList(
        PositionGaussians(side * side, channels) for side, channels in zip(SIDES, CHANNELS, strict=True)
    )
    made.coarse = PositionGaussians(SIDES[-1] ** 2, others * CHANNELS[-1])
    return made


def pyramids(count: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """A teacher's features, and others that nearly equal them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    teacher = [draw(count, channels, side, side) for side, channels in zip(SIDES, CHANNELS, strict=True)]
    return teacher, [features + 0.3 * draw(*features.shape) for features in teacher]


def whitened_squares(vectors: np.ndarray, spread_of: np.ndarray) -> np.ndarray:
    """(x - μ)^T Σ^-1 (x - μ) of `vectors`, with mean and covariance of `spread_of`; both (N, D)."""
    centred = vectors - spread_of.mean(axis=0)
    return np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(spread_of, rowvar=False)), centred)


def difference(teacher: Tensor, other: Tensor) -> np.ndarray:
    return (normalize(teacher, dim=1) - normalize(other, dim=1)).double().numpy()


def test_the_score_is_the_whitened_length_of_the_coarsest_recovery_difference() -> None:
    made = calibration()
    teacher, recovered = pyramids(40)
    sums = made.empty_sums()
    for part in range(0, 40, 8):
        made.add(sums, [t[part : part + 8] for t in teacher], [o[part : part + 8] for o in recovered])
    made.conclude(sums, ridge=1e-9)
    found = made(teacher, [recovered], torch.zeros(40, 1, 64, 64)).score

    vectors, squares = difference(teacher[1], recovered[1]), np.zeros((40, 2, 2))
    for y in range(2):
        for x in range(2):
            squares[:, y, x] = whitened_squares(vectors[:, :, y, x], vectors[:, :, y, x]) / 6
    expected = made.smooth(upsample(torch.tensor(squares[:, None], dtype=torch.float32), (64, 64)).sqrt())
    torch.testing.assert_close(found, expected.amax(dim=(1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_the_coarse_distance_is_whitened_by_all_differences_together_where_nothing_is_altered() -> None:
    made = calibration(others=2)
    (teacher, recovered), (_, student) = pyramids(60), pyramids(60, seed=1)
    student = [t + 0.2 * s for t, s in zip(teacher, student, strict=True)]
    mask = torch.zeros(60, 1, 64, 64)
    mask[::3, :, :20, :40] = 1  # covers the upper positions of every third part, the right one not wholly
    sums = made.coarse.empty_sums()
    for part in range(0, 60, 20):
        batch = slice(part, part + 20)
        at = [t[batch] for t in teacher], [[t[batch] for t in other] for other in (recovered, student)], mask[batch]
        made.add_surroundings(sums, *at)
    assert sums["count"].tolist() == [40, 40, 60, 60]
    made.coarse.conclude(sums, ridge=1e-9)
    found = made(teacher, [recovered, student], torch.zeros(60, 1, 64, 64)).anomaly_map

    vectors = np.concatenate([difference(teacher[1], other[1]) for other in (recovered, student)], axis=1)
    squares = np.zeros((60, 2, 2))
    for y in range(2):
        seen = np.arange(60) % 3 > 0 if y == 0 else np.full(60, True)
        for x in range(2):
            squares[:, y, x] = whitened_squares(vectors[:, :, y, x], vectors[seen][:, :, y, x]) / 12
    expected = 0.3 * made.smooth(upsample(torch.tensor(squares[:, None], dtype=torch.float32), (64, 64)).sqrt())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_altered_parts_show_beside_the_alteration_is_no_evidence() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, recovered = pyramids(200)
    halo = torch.zeros(200, 6, 2, 2)
    halo[:, 0] = torch.randn(200, 2, 2, generator=generator)  # an alteration shifts the first channel everywhere
    upset = [recovered[0], recovered[1] + halo]
    distances = {}
    for name, seen in (("good parts", recovered), ("altered parts", upset)):
        made = calibration()
        sums = made.coarse.empty_sums()
        made.add_surroundings(sums, teacher, [seen], torch.zeros(200, 1, 64, 64))
        made.conclude_surroundings(sums, ridge=0.01)
        maps = [made(teacher, [other], torch.zeros(200, 1, 64, 64)).anomaly_map.mean() for other in (recovered, upset)]
        distances[name] = float(maps[1] / maps[0])
    assert distances["good parts"] > 1.5
    assert distances["altered parts"] < 1.2


def test_the_mask_weighs_the_fine_distance() -> None:
    made = calibration()
    teacher, recovered = pyramids(1)
    nothing, half, everything = (
        made(teacher, [recovered], torch.full((1, 1, 64, 64), value)).anomaly_map for value in (0.0, 0.5, 1.0)
    )
    fine = everything - nothing
    assert fine.min() > 0
    torch.testing.assert_close(half - nothing, 0.5 * fine)


def test_the_score_adds_a_third_of_the_segmented_peak_to_the_unusual_one_in_spreads_over_good_parts() -> None:
    made = calibration()
    teacher, recovered = pyramids(8)
    mask = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    anomaly_map, peaks = made.measure(teacher, [recovered], mask)
    coarse = made(teacher, [recovered], torch.zeros_like(mask)).anomaly_map
    torch.testing.assert_close(peaks[:, 1], (anomaly_map - coarse).amax(dim=(1, 2, 3)))
    sums = made.standardise.empty_sums()
    made.standardise.add(sums, peaks)
    made.standardise.conclude(sums)
    units = (peaks - peaks.mean(dim=0)) / peaks.std(dim=0, correction=0)
    expected = units[:, 0] + units[:, 1] / 3
    torch.testing.assert_close(made(teacher, [recovered], mask).score, expected, rtol=1e-4, atol=1e-4)


def test_a_vector_left_out_is_as_far_as_from_a_fit_without_it() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 12, 4, generator=generator)
    gaussians = PositionGaussians(1, 4)
    sums = gaussians.empty_sums()
    gaussians.add(sums, vectors)
    gaussians.conclude(sums, ridge=0.1)
    found = gaussians.left_out(gaussians(vectors))[:, 0]
    for i in range(12):
        rest = np.delete(vectors[0].double().numpy(), i, axis=0)
        away = vectors[0, i].double().numpy() - rest.mean(axis=0)
        sigma = np.cov(rest, rowvar=False) * 10 / 11 + 0.1 * np.eye(4)
        np.testing.assert_allclose(found[i], np.sqrt(away @ np.linalg.inv(sigma) @ away), rtol=1e-4)


def test_good_parts_that_were_learnt_from_look_as_good_parts_to_come() -> None:
    made = calibration()
    teacher, recovered = pyramids(24)
    sums = made.empty_sums()
    made.add(sums, *([scale[:12] for scale in features] for features in (teacher, recovered)))
    made.conclude(sums, ridge=0.01)
    halves = []
    for half, seen in ((slice(12), False), (slice(12), True), (slice(12, 24), False)):
        batch = [t[half] for t in teacher], [[o[half] for o in recovered]], torch.zeros(12, 1, 64, 64)
        halves.append(float(made.measure(*batch, seen)[1][:, 0].mean()))
    learnt, left_out, to_come = halves
    assert learnt < 0.8 * to_come
    assert 0.8 * to_come < left_out < 1.25 * to_come


def test_a_position_that_was_never_seen_borrows_the_spread_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 500, 4, generator=generator)
    counted = torch.tensor([True, True, False]).unsqueeze(1).expand(3, 500)
    gaussians = PositionGaussians(3, 4)
    sums = gaussians.empty_sums()
    gaussians.add(sums, vectors, counted)
    gaussians.conclude(sums, ridge=1e-6, shared=0.1)
    seen, _, unseen = gaussians(vectors).square().mean(dim=0) / 4
    assert abs(float(seen) - 1) < 0.1
    assert abs(float(unseen) - 10) < 1  # a tenth of the others' covariance is all that it has
