"""PatchCore: its patches, coreset and score against literal retypings; what its memory holds and how large it gets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from threecad.methods.patchcore import PatchCore, PatchCoreConfig
from threecad.nets import patch_memory
from threecad.nets.candidates import Candidates
from threecad.nets.patch_memory import PatchMemory, all_of, greedy_coreset, k_means, these
from threecad.nets.patches import PatchFeatures
from threecad.nets.place_units import PlaceUnits
from threecad.nets.pyramid import Pyramid
from threecad.nets.shared_whitening import SharedWhitening
from threecad.records import Batch

OURS = {
    "sampling": "k_means",
    "coreset_share": 1.0,
    "neighbourhood_px": 8,
    "whitened": True,
    "standardised": True,
    "neighbours": 1,
}


def built(seed: int = 0, **changes: object) -> PatchCore:
    torch.manual_seed(seed)
    return PatchCore(PatchCoreConfig(**(PatchCoreConfig.tiny().model_dump() | changes))).eval()


def fit(detector: PatchCore, images: Tensor, batch: int = 4) -> PatchCore:
    with torch.no_grad():
        for phase in detector.phases(textures=None):
            sums = phase.empty_sums()
            for image in images.split(batch):
                phase.observe(sums, Batch(image, image, torch.zeros_like(image[:, :1])))
            phase.conclude(sums)
    return detector


def parts(count: int, seed: int = 0) -> Tensor:
    """Images (count, 3, 64, 64), no two alike, of whole grey levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(90, 140, (count, 3, 64, 64), generator=generator) / 255


def mixed_patches(count: int) -> Tensor:
    """Patches (30, count, 4) that vary more in some directions than in others, about another mean at each place."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator)
    return torch.randn(30, count, 4, generator=generator) @ mixing + 10 * torch.rand(30, 1, 4, generator=generator)


def every_patch(detector: PatchCore, images: Tensor) -> Tensor:
    with torch.no_grad():
        return detector.nearest(detector.patches(images).flatten(1, 2)).vectors


@pytest.fixture(scope="module")
def fitted() -> PatchCore:
    return fit(built(), parts(12))


@pytest.fixture(scope="module")
def ours() -> PatchCore:
    return fit(built(memory_patches=5 * 64, **OURS), parts(12))


# ------------------------------------------------------------------------------------------------------------ patches


def test_patches_of_the_paper_are_those_of_the_published_order() -> None:
    """Unfold, bring every value's map to the finer grid, pool each scale to 1024 values, and both again to 1024."""
    with torch.device("meta"):
        wide = PatchFeatures(Pyramid("wide_resnet50_2.tv_in1k", "random", strides=(8, 16)), 1024)
    assert (wide.pool.scale_values, wide.values) == ([1024, 1024], 1024)
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(2, 512, 4, 6, generator=generator), torch.rand(2, 1024, 2, 3, generator=generator)]
    scales = []
    for scale in features:
        patches = F.unfold(scale, 3, padding=1).unflatten(2, scale.shape[-2:])
        patches = F.interpolate(patches, size=(4, 6), mode="bilinear", align_corners=False)
        scales.append(F.adaptive_avg_pool1d(patches.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(1), 1024))
    expected = F.adaptive_avg_pool1d(torch.cat(scales, dim=2), 1024).view(2, 4, 6, 1024)
    torch.testing.assert_close(wide.pool(features), expected, rtol=1e-5, atol=1e-6)


def test_a_patch_of_all_channels_is_their_mean_over_its_neighbourhood_at_three_scales() -> None:
    patches = PatchFeatures(Pyramid("tf_efficientnet_lite0.in1k", "random"), None)
    assert patches.values == 24 + 40 + 112
    fine, middle, coarse = torch.rand(1, 24, 8, 8), torch.rand(1, 40, 4, 4), torch.rand(1, 112, 2, 2)
    vector = patches.pool([fine, middle, coarse])[0, 1, 2]
    surroundings = F.pad(fine, (1, 1, 1, 1))[0]
    cell = [surroundings[:, y : y + 3, x : x + 3].mean(dim=(1, 2)) for y in (2, 3) for x in (4, 5)]
    torch.testing.assert_close(vector[:24], torch.stack(cell).mean(dim=0))
    torch.testing.assert_close(vector[24:64], middle[0, :, :3, 1:4].mean(dim=(1, 2)))


def test_without_a_neighbourhood_a_patch_is_the_feature_itself() -> None:
    patches = PatchFeatures(Pyramid("tf_efficientnet_lite0.in1k", "random"), None, side=1)
    features = [torch.rand(1, 24, 8, 8), torch.rand(1, 40, 4, 4), torch.rand(1, 112, 2, 2)]
    assert torch.equal(patches.pool(features)[..., 24:64], features[1].permute(0, 2, 3, 1))


# ------------------------------------------------------------------------------------------------------------ coreset


def test_the_coreset_takes_the_farthest_patch_again_and_again() -> None:
    """argmax over patches of the distance from what is chosen, which starts as the mean distance from ten of them."""
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    candidates = torch.from_numpy(vectors).unsqueeze(0)
    generator = torch.Generator().manual_seed(3)
    starts = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:10].numpy()
    distance = np.array([np.mean([math.dist(v, vectors[s]) for s in starts]) for v in vectors])
    expected = []
    for _ in range(8):
        expected.append(int(distance.argmax()))
        distance = np.minimum(distance, [math.dist(v, vectors[expected[-1]]) for v in vectors])
    chosen = greedy_coreset(candidates, 8, generator)
    assert torch.equal(chosen.patches[0], candidates[0, expected])
    assert chosen.members[0, expected].tolist() == list(range(8)) and int((chosen.members >= 0).sum()) == 8


def test_a_coreset_has_a_patch_of_every_rare_kind_also_after_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = 20 * torch.randn(10, 200, generator=generator)
    kind = torch.cat([torch.zeros(400, dtype=torch.int64), torch.arange(1, 10)])
    candidates = kinds[kind].unsqueeze(0) + torch.randn(1, 409, 200, generator=generator)
    chosen = greedy_coreset(candidates, 10, generator).members[0] >= 0
    assert set(kind[chosen].tolist()) == set(range(10))


def test_every_cell_has_its_own_coreset_and_its_own_means() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = torch.rand(70, 30, 5, generator=generator)
    for choose in (greedy_coreset, k_means):
        together = choose(candidates, 6, torch.Generator().manual_seed(1))
        alone = choose(candidates[66:67], 6, torch.Generator().manual_seed(1))
        torch.testing.assert_close(together.patches[66:67], alone.patches)
        assert torch.equal(together.members[66:67], alone.members)


def test_means_of_groups_that_lie_apart_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    noise = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(0))
    candidates = centres.repeat(30, 1).unsqueeze(0) + noise
    chosen = k_means(candidates, 2, torch.Generator().manual_seed(0))
    found = chosen.patches[0]
    expected = torch.stack([candidates[0, i::2].mean(dim=0) for i in (0, 1)])
    torch.testing.assert_close(found[found[:, 0].argsort()], expected)
    assert chosen.sizes.tolist() == [[30, 30]] and len(set(chosen.members[0, ::2].tolist())) == 1


# ----------------------------------------------------------------------------------------- nearest patches and scores


def test_the_nearest_is_found_whole_or_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    memory = PatchMemory((2, 3), 5, 50, candidates=10, reach=None)
    memory.keep(all_of(torch.rand(1, 42, 5, generator=generator)))
    vectors = torch.rand(2, 6, 5, generator=generator)
    expected = torch.cdist(vectors, memory.bank[:, :42].expand(2, -1, -1)).min(dim=2)
    for rows_at_once in (4096, 7):
        monkeypatch.setattr(patch_memory, "ROWS_AT_ONCE", rows_at_once)
        distances, rows = memory(vectors)
        torch.testing.assert_close(distances, expected.values)
        assert torch.equal(rows, expected.indices)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_a_patch_is_compared_with_those_around_its_place_and_no_others(reach: int) -> None:
    height, width, generator = 3, 5, torch.Generator().manual_seed(reach)
    memory = PatchMemory((height, width), 4, 2 * 15, 2, reach)
    memory.keep(all_of(torch.rand(15, 2, 4, generator=generator)))
    vectors = torch.rand(2, 15, 4, generator=generator)
    distances, rows = memory(vectors)
    for image, y, x in itertools.product(range(2), range(height), range(width)):
        around = {
            2 * (v * width + u) + k: math.dist(vectors[image, y * width + x], memory.bank[v * width + u, k])
            for v in range(max(0, y - reach), min(height, y + reach + 1))
            for u in range(max(0, x - reach), min(width, x + reach + 1))
            for k in range(2)
        }
        row = int(rows[image, y * width + x])
        assert row == min(around, key=around.__getitem__)
        assert float(distances[image, y * width + x]) == pytest.approx(around[row], rel=1e-5)


def test_what_is_good_in_one_place_is_odd_in_another_only_with_a_neighbourhood() -> None:
    images = torch.full((6, 3, 64, 64), 0.4) + parts(6) / 50
    images[:, :, 8:24, 8:24] = 1.0
    moved = torch.full((1, 3, 64, 64), 0.4)
    moved[:, :, 40:56, 40:56] = 1.0
    everywhere = fit(built(coreset_share=1.0, memory_patches=1024, neighbours=1), images)
    around = fit(built(coreset_share=1.0, memory_patches=1024, neighbours=1, neighbourhood_px=8), images)
    with torch.no_grad():
        assert around(moved).score > 2 * everywhere(moved).score


def test_the_score_is_the_largest_distance_weighted_by_the_neighbours_of_the_nearest_patch(fitted: PatchCore) -> None:
    """Eqs. (6) and (7), retyped."""
    image = parts(3, seed=9)
    memory = fitted.nearest.memory.bank[0, fitted.nearest.memory.squares[0] < patch_memory.NOWHERE].double().numpy()
    with torch.no_grad():
        score = fitted(image).score
    for patches, found in zip(every_patch(fitted, image).double().numpy(), score, strict=True):
        distances = np.linalg.norm(patches[:, None] - memory[None], axis=2)
        tested, nearest = np.unravel_index(
            np.where(distances == distances.min(axis=1, keepdims=True), distances, -1).argmax(), distances.shape
        )
        s = distances[tested, nearest]
        around = np.linalg.norm(memory - memory[nearest], axis=1).argsort()[:9]
        weight = 1 - math.exp(s) / sum(math.exp(distances[tested, m]) for m in around)
        assert float(found) == pytest.approx(weight * s, rel=1e-4)


def test_fewer_patches_in_memory_than_neighbours_still_give_a_finite_score() -> None:
    detector = fit(built(memory_patches=3), parts(4))
    with torch.no_grad():
        score = detector(parts(2, seed=5)).score
    assert score.isfinite().all() and (score > 0).all()


def test_with_one_neighbour_the_score_is_the_largest_distance_and_the_map_is_its_smoothed_grid() -> None:
    detector = fit(built(memory_patches=5 * 64, **OURS | {"standardised": False}), parts(12))
    image = parts(2, seed=4)
    with torch.no_grad():
        anomaly_map, score = detector(image)
        distances = detector.nearest.memory(every_patch(detector, image))[0]
    grid = F.interpolate(distances.view(2, 1, 8, 8), size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(anomaly_map, detector.smooth(grid))
    assert torch.equal(score, distances.amax(dim=1))


def test_standardised_the_map_is_how_far_distances_lie_above_those_of_good_parts_that_are_left_out() -> None:
    images, tested = parts(9), parts(3, seed=4)
    detector = fit(built(memory_patches=9 * 64, **OURS), images)
    with torch.no_grad():
        left_out = torch.stack(
            [one.distances[0] for one in detector.nearest.left_out(detector._describe(images), images)]
        )
        distances = detector.nearest(detector._describe(tested)).distances
        z, score = detector.oddness(distances)
        found = detector(tested)
    variance = left_out.var(dim=0)
    k = float(detector.oddness.distances.prior)  # each variance is drawn to that of all
    variance = (8 * variance + k * variance.mean()) / (8 + k) + 0.01 * left_out.var(dim=0, correction=0).mean()
    torch.testing.assert_close(z, (distances - left_out.mean(dim=0)) / variance.sqrt(), rtol=1e-3, atol=1e-3)
    grid = F.interpolate(z.view(3, 1, 8, 8), size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.anomaly_map, detector.smooth(grid))
    assert torch.equal(found.score, score)
    (choice,) = detector.choices()
    assert "distances from the others vary at a place is told by the 9 seen there" in choice
    assert f"by {k:.0f} more" in choice
    with pytest.raises(ValueError, match="set standardised = false or neighbours = 1"):
        PatchCoreConfig(standardised=True)


# ----------------------------------------------------------------------------------------------------- what is learnt


def test_a_memory_with_room_for_everything_holds_every_patch_of_every_part() -> None:
    images = parts(6)
    detector = fit(built(coreset_share=1.0, memory_patches=6 * 64), images)
    held = detector.nearest.memory.bank[0].sort(dim=0).values
    torch.testing.assert_close(held, every_patch(detector, images).flatten(0, 1).sort(dim=0).values)
    with torch.no_grad():
        assert detector(images).anomaly_map.max() < 1e-4


def test_the_memory_depends_on_neither_order_nor_batches() -> None:
    images = parts(9)
    one = fit(built(), images)
    other = fit(built(), images.flip(0), batch=2)
    torch.testing.assert_close(one.nearest.memory.bank, other.nearest.memory.bank, rtol=1e-4, atol=1e-5)


def test_parts_seen_twice_are_remembered_once() -> None:
    images = parts(5)
    once, twice = fit(built(), images), fit(built(), torch.cat([images, images]), batch=10)
    assert once.nearest.candidates.empty_table()["count"].shape == twice.nearest.candidates.empty_table()["count"].shape
    torch.testing.assert_close(once.nearest.memory.bank, twice.nearest.memory.bank, rtol=1e-4, atol=1e-5)


def test_the_choice_follows_the_seed_and_travels_with_the_weights() -> None:
    images = parts(9)
    first, other = fit(built(seed=0), images), built(seed=1)
    assert int(first.nearest.candidates.key) != int(other.nearest.candidates.key)
    other.load_state_dict(first.state_dict())
    assert torch.equal(fit(other, images).nearest.memory.bank, first.nearest.memory.bank)


def test_memory_and_disk_are_bounded_by_their_settings_whatever_the_number_of_parts() -> None:
    detector = built(candidate_patches=64 * 5, memory_patches=50)
    before = sum(tensor.numel() for tensor in detector.state_dict().values())
    fit(detector, parts(40), batch=20)
    assert detector.nearest.candidates.empty_table()["patches"].shape == (64, 5, 48)
    assert detector.nearest.memory.bank.shape == (1, 50, 48)
    assert sum(tensor.numel() for tensor in detector.state_dict().values()) == before


def test_a_fit_makes_room_for_no_more_patches_than_its_images_have() -> None:
    config = PatchCoreConfig(**PatchCore.quick.method, backbone="embedded", image_size=(64, 128))
    some = config.for_images(20)
    assert (some.memory_patches, some.candidate_patches) == (20 * 8 * 16, 20 * 8 * 16)
    assert config.for_images(10**6) == config
    paper = PatchCoreConfig().for_images(10)
    assert (paper.memory_patches, paper.candidate_patches) == (784, 7840)
    assert PatchCoreConfig(image_size="auto").for_images(10) == PatchCoreConfig(image_size="auto")


def test_more_parts_than_rows_leave_each_place_another_choice_of_whole_patches() -> None:
    images, detector = parts(20), built(candidate_patches=64 * 4)
    fit(detector, images)
    everything = every_patch(detector, images)
    table = detector.nearest.candidates.empty_table()
    with torch.no_grad():
        detector.nearest.candidates.add(table, images, everything)
    assert (table["count"] == 1).all()
    held = detector.nearest.candidates.gathered(table)
    chosen = [
        {int((everything[:, place] - row).abs().sum(dim=1).argmin()) for row in held[place]} for place in range(64)
    ]
    assert all(len(parts_here) == 4 for parts_here in chosen)
    assert set().union(*chosen) == set(range(20))
    exact = [torch.cdist(held[place], everything[:, place]).amin(dim=1).max() for place in range(64)]
    assert max(exact) < 1e-3


def test_addresses_of_parts_that_differ_in_one_pixel_differ() -> None:
    torch.manual_seed(0)
    candidates = Candidates(4, 2, 8)
    image = parts(1)
    other = image.clone()
    other[0, 0, 5, 5] += 1 / 255
    assert candidates._addresses_of(image) != candidates._addresses_of(other)
    assert candidates._addresses_of(image) == candidates._addresses_of(
        image.contiguous(memory_format=torch.channels_last)
    )


def test_whitened_patches_vary_alike_in_all_directions_about_their_own_place() -> None:
    whiten = SharedWhitening(4, ridge=1e-6)
    patches = mixed_patches(50)
    assert torch.equal(whiten(patches), patches)
    whiten.learn(patches)
    away = whiten(patches)
    away = (away - away.mean(dim=1, keepdim=True)).flatten(0, 1).double()
    torch.testing.assert_close(away.T @ away / (30 * 49), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_place_where_good_parts_differ_more_has_a_larger_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 2000, 3, generator=generator) * torch.tensor([1.0, 2.0]).view(2, 1, 1)
    units = PlaceUnits(2, 3)
    assert units().tolist() == [1, 1]
    units.learn(patches)
    torch.testing.assert_close(units().square(), torch.tensor([0.4, 1.6]), rtol=0.1, atol=0)  # variances 1, 4: mean 2.5


def test_where_good_parts_never_differ_a_unit_is_a_tenth_and_not_nothing() -> None:
    units = PlaceUnits(2, 3)
    patches = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    patches[1] = 0.5
    units.learn(patches)
    assert units()[1] == pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------- parts left out


def test_units_without_a_part_are_those_of_a_fit_on_the_others() -> None:
    patches = torch.rand(6, 5, 3, generator=torch.Generator().manual_seed(0))
    units, others = PlaceUnits(6, 3), PlaceUnits(6, 3)
    units.learn(patches)
    others.learn(patches[:, 1:])
    torch.testing.assert_close(units.without(patches[:, 0], torch.ones(6, dtype=torch.bool)), others())
    torch.testing.assert_close(units.without(patches[:, 0], torch.zeros(6, dtype=torch.bool)), units())


def test_whitening_without_a_part_is_that_of_a_fit_on_the_others() -> None:
    patches = mixed_patches(6)
    whiten, others = SharedWhitening(4, ridge=1e-6), SharedWhitening(4, ridge=1e-6)
    whiten.learn(patches)
    others.learn(patches[:, 1:])
    away = whiten(patches[:, 0] - patches.mean(dim=1))
    turned = whiten.without(away, torch.full((30,), 6.0))
    tested = torch.rand(7, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((whiten(tested) @ turned).norm(dim=1), others(tested).norm(dim=1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_of_two_parts_one_left_out_leaves_the_ridge_alone_and_not_what_rounding_makes_of_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(128, 128, generator=generator) * torch.logspace(0, -2, 128)
    patches = torch.randn(1024, 2, 128, generator=generator) @ mixing
    whiten = SharedWhitening(128, ridge=0.001)
    whiten.learn(patches)
    turned = whiten.without(whiten(patches[:, 0] - patches.mean(dim=1)), torch.full((1024,), 2.0))
    lengths = (whiten(torch.eye(128)) @ turned).norm(dim=1)
    assert lengths.max() <= 1.001 / whiten.least.sqrt()  # no direction has less than the ridge


@pytest.mark.parametrize("reach", [None, 1])
def test_a_memory_without_a_part_is_that_of_the_other_parts(reach: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(6, 5, 4, generator=generator)  # of five parts at six places
    memory, others = (PatchMemory((2, 3), 4, 6 * parts, parts, reach) for parts in (5, 4))
    cells = 1 if reach is None else 6
    memory.keep(all_of(patches.reshape(cells, -1, 4)))
    others.keep(all_of(patches[:, [0, 1, 3, 4]].reshape(cells, -1, 4)))
    own = patches[:, 2]
    distances = memory(own.unsqueeze(0), memory.without(own, torch.full((6,), 2)))[0]
    torch.testing.assert_close(distances, others(own.unsqueeze(0))[0])
    assert memory(own.unsqueeze(0))[0].max() < 1e-6


def test_a_patch_that_is_not_remembered_leaves_nothing_out() -> None:
    patches = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    memory = PatchMemory((2, 3), 4, 6 * 3, 5, reach=1)
    memory.keep(these(patches, torch.tensor([0, 1, 3]).expand(6, -1)))
    own = patches[:, 2]
    for rows in (torch.full((6,), 2), torch.full((6,), -1)):
        assert torch.equal(memory.without(own, rows).squares, memory.squares)


@pytest.mark.parametrize("reach", [None, 1])
def test_a_mean_without_a_part_is_the_mean_of_the_others(reach: int | None) -> None:
    patches = torch.rand(6, 9, 4, generator=torch.Generator().manual_seed(0))
    cells = 1 if reach is None else 6
    memory = PatchMemory((2, 3), 4, 6 * 4, 9, reach)
    memory.keep(k_means(patches.reshape(cells, -1, 4), 24 // cells, torch.Generator().manual_seed(1)))
    known = memory.without(patches[:, 2], torch.full((6,), 2))
    by_row = [[] for _ in range(24)]  # the other parts' patches
    for place, part in itertools.product(range(6), range(9)):
        if part != 2:
            by_row[int(memory.members[place, part])].append(patches[place, part])
    for row, squares, members in zip(known.bank.flatten(0, 1), known.squares.flatten(), by_row, strict=True):
        assert (squares == patch_memory.NOWHERE) == (not members)
        if members:
            torch.testing.assert_close(row, torch.stack(members).mean(dim=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"coreset_share": 1.0, "memory_patches": 6 * 64},
        {**OURS, "whitened": False, "standardised": False, "memory_patches": 6 * 64},
    ],
)
def test_a_good_part_that_is_left_out_scores_as_by_a_fit_on_the_others(changes: dict[str, object]) -> None:
    images = parts(6)
    detector = fit(built(**changes), images)
    with torch.no_grad():
        left_out = detector.left_out(images[:2])
        for index in range(2):
            others = fit(built(**changes), images[[k for k in range(6) if k != index]])
            expected = others(images[index : index + 1])
            torch.testing.assert_close(left_out.score[index], expected.score[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(left_out.anomaly_map[index], expected.anomaly_map[0], rtol=1e-3, atol=1e-3)
        assert (left_out.score > 2 * detector(images[:2]).score + 1e-3).all()


@pytest.mark.parametrize("name", ["fitted", "ours"])
def test_left_out_good_parts_score_like_new_ones(name: str, request: pytest.FixtureRequest) -> None:
    detector = request.getfixturevalue(name)
    with torch.no_grad():
        left_out, new = detector.left_out(parts(12)).score, detector(parts(30, seed=77)).score
    assert new.quantile(0.1) < left_out.median() < new.quantile(0.9)


def test_a_part_that_was_never_learnt_from_is_left_out_of_nothing(ours: PatchCore) -> None:
    image = parts(2, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(ours.left_out(image).score, ours(image).score)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_parts_are_enough_to_learn_from(count: int) -> None:
    for changes in ({}, OURS):
        detector = fit(built(**changes), parts(count))
        with torch.no_grad():
            predictions = [detector(parts(2, seed=3)), detector.left_out(parts(count))]
        for prediction in predictions:
            assert prediction.anomaly_map.isfinite().all() and prediction.score.isfinite().all()


@pytest.mark.parametrize("name", ["fitted", "ours"])
def test_a_planted_defect_is_the_highest_place_of_the_map(name: str, request: pytest.FixtureRequest) -> None:
    detector, image = request.getfixturevalue(name), parts(1, seed=8)
    with torch.no_grad():
        good = detector(image)
        image[:, :, 32:48, 8:24] = 1.0
        bad = detector(image)
    assert bad.score > good.score
    row, column = divmod(int(bad.anomaly_map.flatten().argmax()), 64)
    assert 24 <= row < 56 and column < 32


@pytest.mark.slow
def test_the_exported_program_of_our_settings_equals_the_detector(ours: PatchCore) -> None:
    images = parts(3, seed=2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(ours, (images[:2],), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(images).anomaly_map, ours(images).anomaly_map)


def test_the_quick_preset_is_the_paper_s_method_with_our_settings() -> None:
    quick = PatchCoreConfig(**PatchCore.quick.method, backbone="embedded")
    assert (quick.neighbourhood_px, quick.whitened, quick.sampling, quick.standardised) == (8, True, "k_means", True)
    paper = PatchCoreConfig()
    assert (paper.neighbourhood_px, paper.whitened, paper.sampling) == (None, False, "coreset")
    assert (paper.neighbours, paper.standardised) == (9, False)
