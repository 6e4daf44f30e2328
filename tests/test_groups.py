"""Images of one part stay together."""

from __future__ import annotations

import numpy as np
import pytest

from threecad.errors import DataError, SettingsError
from threecad.groups import folds, groups, hold_out

PATHS = ["monday/a1_left.png", "monday/a1_right.png", "tuesday/b7_left.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (None, PATHS),
        (r"[a-z]\d", ["a1", "a1", "b7"]),  # the whole match
        (r"/(\w+)_(left|right)", ["a1", "a1", "b7"]),  # the first group
        (r"(left|right)|(?P<part>[a-z]\d)", ["a1", "a1", "b7"]),  # the group called part
    ],
)
def test_the_part_is_what_the_named_or_first_group_or_the_whole_pattern_finds(
    pattern: str | None, found: list[str]
) -> None:
    assert groups(PATHS, pattern, "part") == found


def test_lots_are_found_in_the_same_way() -> None:
    assert groups(PATHS, "^(?P<lot>[^/]+)/", "lot") == ["monday", "monday", "tuesday"]


@pytest.mark.parametrize(("pattern", "matched"), [("c9", 0), ("monday", 2), ("(x?)", 0)])
def test_a_pattern_that_leaves_an_image_without_a_part_is_refused(pattern: str, matched: int) -> None:
    with pytest.raises(DataError, match=rf"data.part = .* finds a part in {matched} of 3 image paths"):
        groups(PATHS, pattern, "part")


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"setting 'data.lot': expected a regular expression"):
        groups(PATHS, "(", "lot")


PARTS = [f"part{index // 3:02}" for index in range(60)]
"""Three images of each of twenty parts."""


def test_a_hold_out_takes_whole_parts() -> None:
    aside = hold_out(PARTS, 0.25, seed=0)
    inside = {part for part, is_aside in zip(PARTS, aside, strict=True) if is_aside}
    assert (aside.sum(), len(inside)) == (15, 5)
    assert np.array_equal(aside, hold_out(PARTS, 0.25, seed=0))
    assert not np.array_equal(aside, hold_out(PARTS, 0.25, seed=1))


def test_which_parts_are_held_out_does_not_depend_on_the_order_of_images() -> None:
    order = np.random.default_rng(0).permutation(60)
    shuffled = [PARTS[index] for index in order]
    assert np.array_equal(hold_out(shuffled, 0.25, seed=0), hold_out(PARTS, 0.25, seed=0)[order])
    assert np.array_equal(folds(shuffled, 4, seed=0), folds(PARTS, 4, seed=0)[order])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_at_least_two_parts_are_left_to_learn_from(share: float) -> None:
    for count in (1, 2, 3):
        left = {part for part, aside in zip(PARTS, hold_out(PARTS[: 3 * count], share, 0), strict=False) if not aside}
        assert len(left) >= min(count, 2)


def test_folds_are_even_and_divide_no_part() -> None:
    fold = folds(PARTS, 4, seed=0)
    assert np.bincount(fold).tolist() == [15, 15, 15, 15]
    assert all(len(set(fold[index : index + 3])) == 1 for index in range(0, 60, 3))


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="21 folds need at least 21 good parts, found 20"):
        folds(PARTS, 21, seed=0)
    with pytest.raises(SettingsError, match="at least 2 folds"):
        folds(PARTS, 1, seed=0)
