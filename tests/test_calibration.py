"""Distances in units of their spread: what is whitened by what, and what becomes of a map and of a score."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from threecad.nets.calibration import Calibration
from threecad.nets.differences import CoarseDistance, Comparison, FineDistances
from threecad.nets.halves import half_of
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.standardisation import Standardisation

SIDES, CHANNELS = (16, 8, 4), (3, 4, 5)
"""Grids and channels of the three scales in these tests, of images of 64×64 px."""


def calibration(branches: int = 1) -> Calibration:
    teacher = cast(Any, SimpleNamespace(strides=[4, 8, 16], channels=list(CHANNELS)))
    return Calibration(teacher, branches, GaussianBlur(4.0, (64, 64)), (64, 64))


def comparison(teacher: list[Tensor], *branches: list[Tensor], mask: Tensor | float = 0.0) -> Comparison:
    """Of a teacher with branches, the recovered features first; a mask that is a number is the same everywhere."""
    if isinstance(mask, float):
        mask = torch.full((len(teacher[0]), 1, 64, 64), mask)
    return Comparison(teacher, branches[0], [branch[-1] for branch in branches], mask)


def part(features: list[Tensor], chosen: slice) -> list[Tensor]:
    return [scale[chosen] for scale in features]


def pyramids(count: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """A teacher's features, and others that nearly equal them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    teacher = [draw(count, channels, side, side) for side, channels in zip(SIDES, CHANNELS, strict=True)]
    return teacher, [features + 0.3 * draw(*features.shape) for features in teacher]


def images(count: int, seed: int = 0) -> Tensor:
    """Parts that fall into either half."""
    return torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) / 255


def whitened_squares(vectors: np.ndarray, spread_of: np.ndarray) -> np.ndarray:
    """(x - μ)^T Σ^-1 (x - μ) of `vectors`, with mean and covariance of `spread_of`; both (N, D)."""
    centred = vectors - spread_of.mean(axis=0)
    return np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(spread_of, rowvar=False)), centred)


def difference(teacher: Tensor, other: Tensor) -> np.ndarray:
    return (normalize(teacher, dim=1) - normalize(other, dim=1)).double().numpy()


def as_map(squares: np.ndarray) -> Tensor:
    """Squared distances (B, h, w) as a map (B, 1, 64, 64) of distances."""
    return upsample(torch.tensor(squares[:, None], dtype=torch.float32), (64, 64)).sqrt()


def test_the_unusual_distance_is_the_whitened_length_of_the_coarsest_recovery_difference() -> None:
    fine = FineDistances([side**2 for side in SIDES], CHANNELS)
    teacher, recovered = pyramids(40)
    sums = fine.empty_sums()
    for first in range(0, 40, 8):
        batch = slice(first, first + 8)
        fine.add(sums, comparison(part(teacher, batch), part(recovered, batch)))
    for index, scale in enumerate(fine.gaussians()):
        scale.conclude({name: sums[f"{index} {name}"] for name in ("count", "sum", "product")}, ridge=1e-9)
    found = fine(comparison(teacher, recovered))[1]

    vectors, squares = difference(teacher[2], recovered[2]), np.zeros((40, 4, 4))
    for y in range(4):
        for x in range(4):
            squares[:, y, x] = whitened_squares(vectors[:, :, y, x], vectors[:, :, y, x]) / CHANNELS[2]
    torch.testing.assert_close(found, as_map(squares), rtol=1e-3, atol=1e-3)


def test_the_coarse_distance_knows_each_half_s_differences_together_where_nothing_is_altered() -> None:
    coarse = CoarseDistance(SIDES[-1] ** 2, 2 * CHANNELS[-1])
    (teacher, recovered), (_, student) = pyramids(120), pyramids(120, seed=1)
    student = [t + 0.2 * s for t, s in zip(teacher, student, strict=True)]
    mask, parts = torch.zeros(120, 1, 64, 64), images(120)
    mask[::3, :, :20, :40] = 1  # covers the upper left positions of every third part, some not wholly
    sums = coarse.empty_sums()
    for first in range(0, 120, 40):
        batch = slice(first, first + 40)
        seen = comparison(*(part(f, batch) for f in (teacher, recovered, student)))
        coarse.add(sums, parts[batch], seen, mask[batch])
    for index, half in enumerate(coarse.gaussians()):
        half.conclude({name: sums[f"{index} {name}"] for name in ("count", "sum", "product")}, ridge=1e-9)
    everything = comparison(teacher, recovered, student)

    vectors = np.concatenate([difference(teacher[2], other[2]) for other in (recovered, student)], axis=1)
    squares, inside = np.zeros((2, 120, 4, 4)), half_of(parts).numpy()
    for half in range(2):
        for y in range(4):
            for x in range(4):
                covered = (np.arange(120) % 3 == 0) & (y < 2) & (x < 3)
                seen_here = vectors[~covered & (inside == half)][:, :, y, x]
                squares[half, :, y, x] = whitened_squares(vectors[:, :, y, x], seen_here) / 10
    torch.testing.assert_close(coarse(everything), as_map(squares.mean(axis=0)), rtol=1e-3, atol=1e-3)
    other = np.where((inside == 0)[:, None, None], squares[1], squares[0])  # each part by the half without it
    torch.testing.assert_close(coarse(everything, parts), as_map(other), rtol=1e-3, atol=1e-3)


def test_what_altered_parts_show_beside_the_alteration_is_no_evidence() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, recovered = pyramids(200)
    halo = torch.zeros_like(recovered[2])
    halo[:, 0] = torch.randn(200, 4, 4, generator=generator)  # an alteration shifts the first channel everywhere
    upset = [*recovered[:2], recovered[2] + halo]
    distances = {}
    for name, seen in (("good parts", recovered), ("altered parts", upset)):
        coarse = CoarseDistance(SIDES[-1] ** 2, CHANNELS[-1])
        sums = coarse.empty_sums()
        coarse.add(sums, images(200), comparison(teacher, seen), torch.zeros(200, 1, 64, 64))
        coarse.conclude(sums, ridge=0.01)
        maps = [coarse(comparison(teacher, other)).mean() for other in (recovered, upset)]
        distances[name] = float(maps[1] / maps[0])
    assert distances["good parts"] > 1.5
    assert distances["altered parts"] - 1 < 0.5 * (distances["good parts"] - 1)


def test_the_mask_weighs_the_fine_distance() -> None:
    made = calibration()
    teacher, recovered = pyramids(2)
    nothing, half, everything = (
        made.measure(comparison(teacher, recovered, mask=value))[:, 0] for value in (0.0, 0.5, 1.0)
    )
    fine = made.smooth(made.fine(comparison(teacher, recovered))[0])[:, 0]
    assert nothing.abs().max() == 0
    torch.testing.assert_close(half, 0.5 * fine)
    torch.testing.assert_close(everything, fine)


def test_map_and_score_are_means_of_what_is_measured_in_spreads_over_good_parts() -> None:
    made = calibration()
    teacher, recovered = pyramids(8)
    mask = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = comparison(teacher, recovered, mask=mask)
    distances = made.measure(seen)
    peaks = distances.amax(dim=(2, 3))
    for standardise, values in ((made.places, distances.movedim(1, -1)), (made.peaks, peaks)):
        sums = standardise.empty_sums()
        standardise.add(sums, values)
        standardise.conclude(sums)
    found = made(seen)
    in_spreads = distances / distances.std(dim=(0, 2, 3), correction=0).view(-1, 1, 1)
    segmented, _, coarse, nearest = in_spreads.unbind(dim=1)
    torch.testing.assert_close(found.anomaly_map[:, 0], (segmented + coarse + nearest) / 3, rtol=1e-3, atol=1e-3)
    units = (peaks - peaks.mean(dim=0)) / peaks.std(dim=0, correction=0)
    torch.testing.assert_close(found.score, units.mean(dim=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [12, 24])
def test_good_parts_that_were_learnt_from_look_as_good_parts_to_come(count: int) -> None:
    """Also with fewer parts than dimensions."""
    fine = FineDistances([side**2 for side in SIDES], CHANNELS)
    teacher, recovered = pyramids(2 * count)
    seen, new = (
        comparison(part(teacher, half), part(recovered, half)) for half in (slice(count), slice(count, 2 * count))
    )
    sums = fine.empty_sums()
    fine.add(sums, seen)
    fine.conclude(sums, ridge=0.01)
    learnt, left_out, to_come = (float(fine(*given)[0].mean()) for given in ((seen,), (seen, seen), (new,)))
    assert learnt < 0.95 * to_come
    assert 0.9 * to_come < left_out < 1.1 * to_come


def test_an_altered_part_is_measured_as_if_its_good_twin_had_been_left_out() -> None:
    """Else it would look more usual than a good part wherever it is not altered."""
    fine = FineDistances([side**2 for side in SIDES], CHANNELS)
    teacher, recovered = pyramids(8)
    seen = comparison(teacher, recovered)
    sums = fine.empty_sums()
    fine.add(sums, seen)
    fine.conclude(sums, ridge=0.01)
    twin = comparison([scale.clone() for scale in teacher], recovered)
    torch.testing.assert_close(fine(twin, seen)[0], fine(seen, seen)[0])
    assert fine(twin, seen)[0].mean() > fine(twin)[0].mean()


def test_a_channel_that_never_varies_is_measured_by_the_others_spread() -> None:
    """Else 0.05 in a channel that was 0 on every good part, as ReLU backbones have them, would be 500 spreads."""
    good = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    good[:, 2] = 0
    standardise = Standardisation(3)
    sums = standardise.empty_sums()
    standardise.add(sums, good)
    standardise.conclude(sums)
    found = standardise(torch.tensor([[0.0, 0.0, 0.05]]))[0, 2]
    assert 0 < found < 1
    torch.testing.assert_close(standardise(good).std(dim=0, correction=0)[:2], torch.ones(2), rtol=1e-3, atol=0)


def test_values_of_different_units_keep_their_own_spreads() -> None:
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.001])
    standardise = Standardisation(2, least_share=0.0)
    sums = standardise.empty_sums()
    standardise.add(sums, values)
    standardise.conclude(sums)
    torch.testing.assert_close(standardise(values).std(dim=0, correction=0), torch.ones(2), rtol=1e-3, atol=0)
