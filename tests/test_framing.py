"""Tiles cover their picture and their maps lie where they belong; outside the region of interest there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from threecad.errors import DataError
from threecad.framing import Box, Framing, MapUnits, Region, Tiles


@pytest.mark.parametrize(
    ("tiles", "size"),
    [
        (Tiles(grid=(2, 3)), (100, 310)),
        (Tiles(grid=(1, 1)), (100, 310)),
        (Tiles(grid=(3, 2), overlap=0.0), (101, 77)),
        (Tiles(side_px=64), (100, 310)),
        (Tiles(side_px=64, overlap=0.5), (64, 65)),
    ],
)
def test_tiles_cover_the_picture_are_of_one_size_and_end_at_its_edge(tiles: Tiles, size: tuple[int, int]) -> None:
    boxes = tiles.boxes(size)
    covered = np.zeros(size, bool)
    for box in boxes:
        covered[box.rows, box.columns] = True
    assert covered.all()
    assert len({(box.height, box.width) for box in boxes}) == 1
    assert (boxes[0].top, boxes[0].left) == (0, 0)
    assert (boxes[-1].top + boxes[-1].height, boxes[-1].left + boxes[-1].width) == size


def test_a_tile_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(DataError, match="expected tiles no larger than the picture, found 128 px in 100 px"):
        Tiles(side_px=128).boxes((100, 310))
    with pytest.raises(DataError, match="expected tiles of at least 16 px, found 3 px: 40 in 64 px; choose fewer"):
        Tiles(grid=(1, 40)).boxes((48, 64))


def test_neighbours_overlap_by_the_share_that_was_set() -> None:
    first, second = Tiles(grid=(1, 2), overlap=0.25).boxes((100, 175))
    assert first == Box(0, 0, 100, 100) and second == Box(0, 75, 100, 100)


def test_what_a_tile_shows_comes_back_at_its_place_and_size() -> None:
    """A network whose map is the picture's red channel gives the red channel back, whatever the tiles."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 160, 3), dtype=np.uint8)
    framing = Framing((64, 64), tiles=Tiles(grid=(1, 3), overlap=0.25, whole=False))
    frames = framing.frames(pixels).pixels
    assert frames.shape == (3, 64, 64, 3)
    joined = framing.join([frame[..., 0].astype(np.float32) for frame in frames], (64, 160))
    np.testing.assert_allclose(joined, pixels[..., 0], atol=1e-3)


def test_the_whole_goes_through_too_and_the_higher_of_both_counts() -> None:
    framing = Framing((32, 32), tiles=Tiles(grid=(2, 2)))
    frames = framing.frames(np.zeros((64, 64, 3), np.uint8)).pixels
    assert len(frames) == 5
    maps = [np.full((32, 32), value, np.float32) for value in (1, 1, 1, 1, 0.5)]
    assert framing.join(maps, (64, 64)).max() == framing.join(maps, (64, 64)).min() == 1
    maps[-1][:] = 3
    assert (framing.join(maps, (64, 64), target=(16, 16)) == 3).all()


def test_without_tiles_and_region_the_picture_is_one_frame() -> None:
    framing = Framing((32, 48))
    assert framing.is_plain
    assert framing.frames(np.zeros((64, 96, 3), np.uint8)).pixels.shape == (1, 32, 48, 3)
    found = np.random.default_rng(0).random((32, 48), np.float32)
    assert np.array_equal(framing.join([found], (64, 96), target=(32, 48)), found)


def test_what_lies_outside_the_region_does_not_reach_the_network_and_has_no_map() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    framing = Framing((64, 64), Region(mask, (10, 20, 30)))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    other = pixels.copy()
    other[:, 32:] = 255
    assert np.array_equal(framing.frames(pixels).pixels, framing.frames(other).pixels)
    assert (framing.frames(pixels).pixels[0, :, 32:] == (10, 20, 30)).all()
    found = np.full((64, 64), 2, np.float32)
    found[:, 32:] = 99
    assert framing.join([found], (64, 64)).max() == 2


def test_a_picture_of_another_size_than_its_region_is_refused_unless_the_region_is_relative() -> None:
    mask = np.ones((64, 64), bool)
    with pytest.raises(DataError, match="size of its region of interest, 64×64, found 32×64"):
        Framing((64, 64), Region(mask)).frames(np.zeros((32, 64, 3), np.uint8))
    assert Region(mask, is_exact=False).at((32, 64)).shape == (32, 64)


def test_units_put_the_good_parts_peaks_at_zero_and_their_spread_at_one() -> None:
    units = MapUnits(centre=4.0, spread=2.0)
    assert units.apply(np.array([4.0, 6.0])).tolist() == [0.0, 1.0]
    assert np.isfinite(MapUnits(0.0, 0.0).apply(np.array([1.0]))).all()
