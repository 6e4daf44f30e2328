"""What is learnt from altered parts: weights, and how far to look around."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from threecad.metrics.image import image_scores
from threecad.nets.nearest import NearestPatches
from threecad.nets.weighing import Weighing
from threecad.synthesis.alterations import KINDS, Alterations, Kind


def learnt(weighing: Weighing, *kinds: tuple[Tensor, Tensor]) -> Weighing:
    """From values (N, K) and which are altered, of each kind."""
    for index, (values, altered) in enumerate(kinds):
        sums = weighing.empty_sums()
        for some in torch.arange(len(values)).split(100):
            weighing.add(sums, values[some], altered[some])
        weighing.conclude(sums, index)
    return weighing


def drawn(shifts: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values in spreads of good parts, a column for each shift that an alteration means; half are altered."""
    values = torch.randn(600, len(shifts), generator=torch.Generator().manual_seed(seed))
    altered = torch.arange(600) % 2 == 1
    return values + altered.unsqueeze(1) * torch.tensor(shifts), altered


def test_what_says_nothing_gets_no_weight_and_what_says_the_same_gets_an_equal_one() -> None:
    weight = learnt(Weighing(3), drawn([2.0, 0.0, 2.0])).weight
    assert weight[1] == 0
    assert weight[0] == weight[2] == 0.5


def test_the_evidence_is_the_average_precision_of_every_form() -> None:
    values, altered = drawn([1.0, 0.5])
    weighing = learnt(Weighing(2), (values, altered))
    for form, found in zip(weighing.forms, weighing.evidence[0], strict=True):
        expected = image_scores((values @ form).numpy(), altered.numpy()).i_ap
        assert float(found) == pytest.approx(expected, abs=0.01)


def test_a_kind_that_only_one_value_finds_is_not_given_up_for_kinds_that_all_find() -> None:
    easy, hard = drawn([6.0, 5.0]), drawn([0.0, 1.0], seed=1)
    assert learnt(Weighing(2, kinds=2), easy, hard).weight[1] >= 0.5


def test_of_equal_forms_that_with_fewer_ingredients_is_kept() -> None:
    altered = torch.arange(40) % 2 == 1
    same = torch.where(altered, 3.0, 0.0).unsqueeze(1).expand(40, 3)
    assert sorted(learnt(Weighing(3), (same, altered)).weight.tolist()) == [0, 0, 1]


def test_of_values_that_exclude_each_other_a_form_takes_one() -> None:
    forms = Weighing(4, exclusive=(2, 3)).forms
    assert ((forms[:, 2] > 0) & (forms[:, 3] > 0)).sum() == 0
    assert ((forms[:, 1] > 0) & (forms[:, 3] > 0)).any()
    torch.testing.assert_close(forms.sum(dim=1), torch.ones(len(forms)))


def test_a_share_that_is_given_is_not_learnt() -> None:
    weight = learnt(Weighing(3, given={0: 1}), drawn([9.0, 0.0, 2.0])).weight
    assert weight.tolist() == [0.25, 0, 0.75]


def test_where_nothing_was_altered_the_weights_stay_equal() -> None:
    weighing = learnt(Weighing(2), (torch.zeros(50, 2), torch.zeros(50, dtype=torch.bool)))
    assert weighing.weight.tolist() == [0.5, 0.5]


def test_the_weights_are_said_with_their_evidence() -> None:
    said = learnt(Weighing(2), drawn([2.0, 0.0])).said(("near", "far"), ("dull",))
    assert said.startswith("1 near: average precision on altered parts ")
    assert "dull" in said
    assert "far" in said.partition("mainly")[2]


HEIGHT, WIDTH = 6, 7


def looked_around(shifted: bool) -> Tensor:
    """The weights of looking in place and around, where parts are all alike but for noise, shifted or not.

    An altered part has the features of its left neighbour at a few positions, if parts lie still, else foreign ones.
    """
    generator = torch.Generator().manual_seed(0)
    pattern = 3 * torch.randn(12, HEIGHT + 2, WIDTH + 2, generator=generator)

    def parts(count: int) -> Tensor:
        offsets = torch.randint(3, (count, 2), generator=generator) if shifted else torch.ones(count, 2).long()
        cut = [pattern[:, y : y + HEIGHT, x : x + WIDTH] for y, x in offsets.tolist()]
        return torch.stack(cut) + 0.3 * torch.randn(count, 12, HEIGHT, WIDTH, generator=generator)

    images = torch.randint(256, (80, 3, 8, 8), generator=generator) / 255
    good = parts(80)
    nearest = NearestPatches((8 * HEIGHT, 8 * WIDTH), 12, patches=8 * HEIGHT * WIDTH, candidates=10**6)
    counts = nearest.empty_counts()
    nearest.count(counts, images)
    nearest.conclude_counts(counts)
    patches = nearest.empty_patches()
    nearest.add(patches, images, [good])
    nearest.conclude_patches(patches)
    mask = torch.rand(80, 1, HEIGHT, WIDTH, generator=generator) < 0.1
    other = 3 * torch.randn(good.shape, generator=generator) if shifted else good.roll(1, dims=3)
    altered = torch.where(mask, other, good)

    def measured(features: Tensor) -> Tensor:
        return torch.cat([nearest([features], reach, images) for reach in (0, 1)], dim=1).movedim(1, -1)

    usual = measured(good)
    units = (measured(altered) - usual.mean(dim=(0, 1, 2))) / usual.std(dim=(0, 1, 2))
    return learnt(Weighing(2, exclusive=(0, 1)), (units.flatten(0, 2), mask.flatten())).weight


def test_parts_that_lie_still_are_compared_in_place_and_parts_that_are_shifted_around() -> None:
    assert looked_around(shifted=False).tolist() == [1, 0]
    assert looked_around(shifted=True).tolist() == [0, 1]


def test_a_part_that_was_learnt_from_looks_as_one_to_come() -> None:
    generator = torch.Generator().manual_seed(0)
    draw: Callable[[int], Tensor] = lambda count: torch.randn(count, 6, 4, 4, generator=generator)  # noqa: E731
    images, good, new = torch.randint(256, (60, 3, 8, 8), generator=generator) / 255, draw(60), draw(60)
    nearest = NearestPatches((32, 32), 6, patches=10**4, candidates=10**4)
    counts, patches = nearest.empty_counts(), nearest.empty_patches()
    nearest.count(counts, images)
    nearest.conclude_counts(counts)
    patches = nearest.empty_patches()
    nearest.add(patches, images, [good])
    nearest.conclude_patches(patches)
    learnt_from, left_out, to_come = (
        float(nearest([features], 0, image).mean()) for features, image in ((good, None), (good, images), (new, None))
    )
    assert learnt_from < 0.7 * to_come
    assert left_out == pytest.approx(to_come, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_alterations_change_parts_inside_the_mask_alone_and_the_same_each_time(kind: Kind) -> None:
    images = torch.rand(12, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    batch, again = (Alterations(kind)(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(batch.image, images)
    assert torch.equal(batch.augmented, again.augmented)
    assert torch.equal(batch.mask, again.mask)
    changed = (batch.augmented - images).abs().amax(dim=1, keepdim=True)
    assert changed[batch.mask == 0].max() == 0
    assert changed[batch.mask > 0].max() > 0
    assert set(np.unique(batch.mask)) == {0.0, 1.0}
    assert 0 <= batch.augmented.min() <= batch.augmented.max() <= 1


def test_a_shaded_place_has_no_edge() -> None:
    grey = torch.full((16, 3, 64, 64), 0.5)
    batch = Alterations("shaded")(grey, torch.Generator().manual_seed(0))
    steps = [batch.augmented.diff(dim=axis).abs() for axis in (2, 3)]
    assert max(float(step.max()) for step in steps) < 0.5 * float((batch.augmented - grey).abs().max())
