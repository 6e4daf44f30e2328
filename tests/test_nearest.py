"""Distances from the nearest patches of good parts, in two halves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threecad.nets.nearest import NearestPatches


def fitted(image: Tensor, good: Tensor) -> NearestPatches:
    """From good parts and their features, all of which are remembered."""
    height, width = good.shape[-2:]
    made = NearestPatches((8 * height, 8 * width), good.shape[1], patches=10**4, candidates=10**5)
    counts = made.empty_counts()
    made.count(counts, image)
    made.conclude_counts(counts)
    patches = made.empty_patches()
    made.add(patches, image, [good])
    made.conclude_patches(patches)
    return made


def parts(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(256, (count, 3, 8, 8), generator=generator) / 255


def test_a_part_that_was_learnt_from_looks_as_one_to_come() -> None:
    generator = torch.Generator().manual_seed(0)
    image = parts(60, generator)
    good, new = torch.randn(2, 60, 6, 4, 4, generator=generator)
    nearest = fitted(image, good)
    learnt_from, left_out, to_come = (
        float(nearest([features], 0, learnt).mean()) for features, learnt in ((good, None), (good, image), (new, None))
    )
    assert learnt_from < 0.7 * to_come
    assert left_out == pytest.approx(to_come, rel=0.05)


def test_looking_around_finds_what_lies_a_position_off() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = 3 * torch.randn(12, 6, 7, generator=generator)
    good = pattern + 0.3 * torch.randn(40, 12, 6, 7, generator=generator)
    nearest = fitted(parts(40, generator), good)
    moved = pattern.roll(1, dims=2).unsqueeze(0)
    in_place, around = (nearest([moved], reach)[0, 0, :, 1:] for reach in (0, 1))
    assert around.max() < 0.5 * in_place.mean()


def test_a_single_part_is_remembered_by_both_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    image, good = parts(1, generator), torch.randn(1, 6, 4, 4, generator=generator)
    nearest = fitted(image, good)
    for learnt in (None, image):
        assert nearest([good], 0, learnt).max() < 1e-3
        assert nearest([good + 1], 0, learnt).isfinite().all()
