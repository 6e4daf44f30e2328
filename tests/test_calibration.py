"""Distances in units of their spread: what is whitened by what, and what becomes of a map."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import normalize

from threecad.nets.calibration import Calibration, Comparison
from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.nearest_patches import NearestPatches
from threecad.nets.oddness import Oddness
from threecad.nets.patches import PatchPooling
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.records import Batch
from threecad.shared_phases import calibration_phases
from threecad.synthesis.blending import TextureSynthesizer
from threecad.synthesis.textures import ProceduralTextures

SIDES, CHANNELS = (4, 2), (5, 6)
"""Grids and channels of the two scales in these tests."""


def calibration(branches: int = 1) -> Calibration:
    """One for the two small scales above; maps of 64×64 px."""
    made = Calibration(Pyramid("resnet10t.c3_in1k", "random"), branches, GaussianBlur(4.0, (64, 64)), (64, 64), 64)
    made.fine = torch.nn.ModuleList(
        PositionGaussians(side * side, channels) for side, channels in zip(SIDES, CHANNELS, strict=True)
    )
    made.coarse = PositionGaussians(SIDES[-1] ** 2, branches * CHANNELS[-1], shared=True)
    made.pool, made.grid = PatchPooling(CHANNELS, (16, 32), None, side=1, stride=16), (4, 4)
    made.nearest = NearestPatches(made.grid, sum(CHANNELS), 4096, 4096, reach=1, ridge=0.001, own_units=True)
    patches = made.grid[0] * made.grid[1]
    for name, places in {"unusual": SIDES[-1] ** 2, "nearest": patches, "segmented": patches}.items():
        made.oddness[name] = Oddness(places)
    made.nearest.candidates.key.zero_()  # by a random one two parts share an address in one of two hundred fits
    return made


def comparison(teacher: list[Tensor], *branches: list[Tensor]) -> Comparison:
    """Of a teacher with branches, the recovered features first."""
    return Comparison(teacher, branches[0], [branch[-1] for branch in branches])


def mask(count: int, value: float = 0.0) -> Tensor:
    """Of images where everything is segmented as much."""
    return torch.full((count, 1, 64, 64), value)


def part(features: list[Tensor], chosen: slice) -> list[Tensor]:
    return [scale[chosen] for scale in features]


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


def test_a_part_is_odd_by_the_whitened_lengths_of_its_coarsest_recovery_differences() -> None:
    made = calibration()
    teacher, recovered = pyramids(40)
    sums = made.empty_fine_sums()
    for first in range(0, 40, 8):
        batch = slice(first, first + 8)
        made.add_fine(sums, comparison(part(teacher, batch), part(recovered, batch)))
    made.conclude_fine(sums, ridge=1e-9)
    found = made(comparison(teacher, recovered), mask(40)).score

    vectors, squares = difference(teacher[1], recovered[1]), np.zeros((40, 2, 2))
    for y in range(2):
        for x in range(2):
            squares[:, y, x] = whitened_squares(vectors[:, :, y, x], vectors[:, :, y, x]) / 6
    expected = made.oddness["unusual"](torch.tensor(np.sqrt(squares), dtype=torch.float32).flatten(1))[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_coarse_distance_is_whitened_by_all_differences_together_where_nothing_is_altered() -> None:
    made = calibration(branches=2)
    made.coarse = PositionGaussians(SIDES[-1] ** 2, 2 * CHANNELS[-1])  # each position for itself
    (teacher, recovered), (_, student) = pyramids(60), pyramids(60, seed=1)
    student = [t + 0.2 * s for t, s in zip(teacher, student, strict=True)]
    altered = mask(60)
    altered[::3, :, :20, :40] = 1  # covers the upper positions of every third part, the right one not wholly
    sums = made.empty_coarse_sums()
    for first in range(0, 60, 20):
        batch = slice(first, first + 20)
        made.add_coarse(sums, comparison(*(part(f, batch) for f in (teacher, recovered, student))), altered[batch])
    assert sums["count"].tolist() == [40, 40, 60, 60]
    made.coarse.conclude(sums, ridge=1e-9)
    found = made(comparison(teacher, recovered, student), mask(60)).anomaly_map

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
        sums = made.empty_coarse_sums()
        made.add_coarse(sums, comparison(teacher, seen), mask(200))
        made.conclude_coarse(sums, ridge=0.01)
        maps = [made(comparison(teacher, other), mask(200)).anomaly_map.mean() for other in (recovered, upset)]
        distances[name] = float(maps[1] / maps[0])
    assert distances["good parts"] > 1.5
    assert distances["altered parts"] < 1.2


def test_the_mask_weighs_the_fine_distance() -> None:
    made = calibration()
    teacher, recovered = pyramids(1)
    nothing, half, everything = (
        made(comparison(teacher, recovered), mask(1, value)).anomaly_map for value in (0.0, 0.5, 1.0)
    )
    fine = everything - nothing
    assert fine.min() > 0
    torch.testing.assert_close(half - nothing, 0.5 * fine)


def test_a_part_is_as_odd_as_its_places_say_or_what_is_around_them_or_segmented_and_u_says_what_counts() -> None:
    made = calibration()
    teacher, recovered = pyramids(40)
    seen = comparison(teacher, recovered)
    masks = torch.rand(40, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    measured = made.measure(seen, masks)
    torch.testing.assert_close(measured.segmented, made(seen, masks).anomaly_map - made(seen, mask(40)).anomaly_map)
    made.learn_usual(measured.evidence())
    unusual, nearest, segmented = (made.oddness[name](of)[1] for name, of in measured.evidence().items())

    made.usual_squares.copy_(torch.tensor([1.0, 1.0]))  # positions tell all
    assert made.unexplained() == 0
    torch.testing.assert_close(made(seen, masks).score, unusual.clamp_min(0), rtol=1e-4, atol=1e-4)
    made.usual_squares.copy_(torch.tensor([2.0, 1.0]))  # patches around explain half
    pieces = torch.stack([unusual, nearest, segmented]) / 2
    expected, most = pieces.max(dim=0)
    assert most.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(made(seen, masks).score, expected, rtol=1e-4, atol=1e-4)
    made.usual_squares.copy_(torch.tensor([4.0, 1.0]))  # three quarters
    pieces = torch.stack([unusual / 4, 3 * nearest / 4, 3 * segmented / 4])
    torch.testing.assert_close(made(seen, masks).score, pieces.amax(dim=0), rtol=1e-4, atol=1e-4)
    expected = measured.segmented + 0.3 * (measured.coarse + 3 * measured.nearest) / 4
    torch.testing.assert_close(made(seen, masks).anomaly_map, expected)


def test_what_is_segmented_beside_a_patch_is_its_largest_value() -> None:
    made = calibration()
    teacher, recovered = pyramids(2)
    masks = mask(2)
    masks[1, :, :16, 16:32] = 1  # the second of 4×4 patches
    measured = made.measure(comparison(teacher, recovered), masks)
    largest = measured.segmented.unflatten(2, (4, 16)).unflatten(4, (4, 16)).amax(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(measured.around_patches, largest)
    assert measured.around_patches[0].max() == 0 and measured.around_patches[1].argmax() == 1


def fitted(teacher: list[Tensor], recovered: list[Tensor]) -> Calibration:
    """A calibration that has learnt from parts with these features, none of which looks like another."""
    made, count = calibration(), len(teacher[0])
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch, seen = Batch(images, images, mask(count)), comparison(teacher, recovered)
    compare, compare_and_segment = lambda _: seen, lambda _: (seen, mask(count))
    synthesizer = TextureSynthesizer(ProceduralTextures())
    for phase in calibration_phases(made, lambda _: teacher, compare, compare_and_segment, synthesizer, 0.01):
        sums = phase.empty_sums()
        phase.observe(sums, batch)
        phase.conclude(sums)
    assert made.measure(seen, mask(count)).nearest.amax() < 0.01  # each finds itself
    assert made.measure(seen, mask(count), learnt=images).nearest.amin() > 0.1
    return made


def test_the_more_parts_there_are_the_more_of_the_next_one_do_their_places_explain() -> None:
    made = [fitted(*pyramids(count)) for count in (9, 40, 200)]
    of_positions = [float(one.usual_squares[0]) for one in made]
    assert of_positions[0] > 3 > 1.5 > of_positions[1] > of_positions[2]
    assert 1 < of_positions[2] < 1.1
    unexplained = [float(one.unexplained()) for one in made]
    assert unexplained[0] > 0.85 > 0.75 > max(unexplained[1:])
    assert f"get {100 * unexplained[0]:.0f} % of the coarse map" in made[0].choices()[0]


def test_patches_around_count_where_parts_move_however_many_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    field = [
        torch.randn(1, channels, side, side, generator=generator)
        for side, channels in zip(SIDES, CHANNELS, strict=True)
    ]
    shifts = torch.randint(-1, 2, (200,), generator=generator).tolist()
    shares = []
    for moves in (False, True):
        teacher = [torch.cat([scale.roll(shift if moves else 0, 3) for shift in shifts]) for scale in field]
        teacher = [scale + 0.2 * torch.randn(scale.shape, generator=generator) for scale in teacher]
        recovered = [scale + 0.3 * torch.randn(scale.shape, generator=generator) for scale in teacher]
        shares.append(float(fitted(teacher, recovered).unexplained()))
    assert shares[1] > 0.75 > 0.55 > shares[0]


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
    sums = made.empty_fine_sums()
    made.add_fine(sums, comparison(part(teacher, slice(12)), part(recovered, slice(12))))
    made.conclude_fine(sums, ridge=0.01)
    images = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    halves = []
    for half, learnt_from in ((slice(12), None), (slice(12), images[:12]), (slice(12, 24), None)):
        batch = comparison(part(teacher, half), part(recovered, half))
        halves.append(float(made.measure(batch, mask(12), learnt_from).unusual.mean()))
    learnt, left_out, to_come = halves
    assert learnt < 0.8 * to_come
    assert 0.8 * to_come < left_out < 1.25 * to_come


def gaussians_of(vectors: Tensor, counted: Tensor | None = None, shared: bool = True) -> PositionGaussians:
    """Those of vectors (P, N, D), of which only some may be `counted` (P, N)."""
    gaussians = PositionGaussians(len(vectors), vectors.shape[2], shared)
    sums = gaussians.empty_sums()
    gaussians.add(sums, vectors, counted)
    gaussians.conclude(sums, ridge=1e-6)
    return gaussians


def test_a_position_that_was_never_seen_has_the_spread_of_the_others() -> None:
    vectors = torch.randn(3, 500, 4, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([True, True, False]).unsqueeze(1).expand(3, 500)
    squares = gaussians_of(vectors, counted)(vectors).square().mean(dim=0) / 4
    torch.testing.assert_close(squares, torch.ones(3), rtol=0.1, atol=0)


def test_positions_share_as_much_as_they_have_in_common() -> None:
    """The prior that vectors were drawn with is found again, whatever the spread that all have in common."""
    common = np.diag([9.0, 1.0, 1.0, 0.01])
    for k in (3, 30, 300):
        rng = np.random.default_rng(k)
        sigmas = scipy.stats.invwishart(df=k + 4 + 1, scale=k * common).rvs(400, random_state=rng)
        vectors = np.stack([rng.multivariate_normal(np.zeros(4), sigma, size=25) for sigma in sigmas])
        found = float(gaussians_of(torch.tensor(vectors, dtype=torch.float32)).prior)
        assert k / 1.6 < found < 1.6 * k


def test_positions_that_differ_in_nothing_share_all() -> None:
    generator = torch.Generator().manual_seed(0)
    alike = gaussians_of(torch.randn(64, 20, 6, generator=generator))
    assert float(alike.prior) > 20 * 20
    nothing = gaussians_of(torch.ones(4, 20, 6))
    once = [gaussians_of(size * torch.randn(4096, 1, 6, generator=generator)) for size in (1, 100)]
    for gaussians in (nothing, *once):
        assert gaussians(torch.randn(len(gaussians.mean), 3, 6, generator=generator)).isfinite().all()


def test_few_vectors_measure_those_to_come_better_with_what_all_positions_share() -> None:
    generator = torch.Generator().manual_seed(0)
    spreads = 1 + torch.rand(64, 1, 8, generator=generator)
    learnt, to_come = (spreads * torch.randn(64, count, 8, generator=generator) for count in (10, 200))
    shared, alone = gaussians_of(learnt), gaussians_of(learnt, shared=False)
    own, together = (float(one(to_come).square().mean()) / 8 for one in (alone, shared))
    assert own > 4 > 1.5 > together > 1
    left_out = float(shared.left_out(shared(learnt)).square().mean()) / 8
    assert abs(left_out / together - 1) < 0.15


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
