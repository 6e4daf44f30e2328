from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from threecad.demo.part_defects import DEFECTS
from threecad.demo.parts import CATEGORY, COMBINED, KINDS, SMALLEST, VISIBLE, Part, render_part, write_parts
from threecad.errors import DataError
from threecad.records import GOOD, Split

SIZE = 128


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_parts(root, train=2, good=1, defects=2, size=SIZE)
    return root / CATEGORY


@pytest.fixture(scope="module")
def defective() -> list[Part]:
    return [render_part(0, Split.TEST, kind, index) for kind in KINDS for index in range(4)]


def change(part: Part) -> np.ndarray:
    return np.abs(part.image.astype(int) - part.clean).max(axis=2)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tree: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_parts(tmp_path / str(seed), seed, train=2, good=1, defects=2, size=SIZE)
    for file in sorted(tree.rglob("*.png")):
        path = file.relative_to(tree.parent)
        assert (tmp_path / "0" / path).read_bytes() == file.read_bytes()
        assert (tmp_path / "1" / path).read_bytes() != file.read_bytes()


def test_a_part_is_the_same_whatever_was_made_before_it(tree: Path) -> None:
    alone = render_part(0, Split.TEST, "dent", 1, SIZE)
    assert np.array_equal(alone.image, np.asarray(Image.open(tree / "test" / "dent" / "001.png")))
    assert np.array_equal(alone.mask, np.asarray(Image.open(tree / "ground_truth" / "dent" / "001.png")))


def test_all_kinds_are_in_the_tree_each_image_with_its_mask(tree: Path) -> None:
    assert len(DEFECTS) >= 5
    assert {folder.name for folder in (tree / "test").iterdir()} == {GOOD, *KINDS}
    assert {folder.name for folder in (tree / "ground_truth").iterdir()} == set(KINDS)
    assert len(list((tree / "train" / GOOD).iterdir())) == 2
    assert len(list((tree / "test" / GOOD).iterdir())) == 1
    for kind in KINDS:
        images, masks = (sorted(f.name for f in (tree / side / kind).iterdir()) for side in ("test", "ground_truth"))
        assert images == masks == ["000.png", "001.png"]


def test_images_are_rgb_and_masks_are_one_channel_of_0_and_255(tree: Path) -> None:
    for file in tree.rglob("*.png"):
        pixels = np.asarray(Image.open(file))
        if "ground_truth" in file.parts:
            assert pixels.shape == (SIZE, SIZE) and set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.shape == (SIZE, SIZE, 3)


def test_outside_its_mask_a_defective_part_equals_its_clean_twin(defective: list[Part]) -> None:
    for part in defective:
        assert change(part)[part.mask == 0].max() <= VISIBLE, part.kinds


def test_inside_its_mask_a_defective_part_differs_from_its_clean_twin(defective: list[Part]) -> None:
    for part in defective:
        inside = change(part)[part.mask == 255]
        assert (inside > VISIBLE).mean() > 0.6, part.kinds  # the rest lies between a dent's or scratch's two sides
        assert inside.max() > 4 * VISIBLE, part.kinds


def test_there_are_tiny_and_large_defects_and_none_below_three_pixels(defective: list[Part]) -> None:
    areas = [np.count_nonzero(part.mask) for part in defective]
    assert min(areas) >= SMALLEST == 3
    assert min(areas) < 30 and max(areas) > 500


def test_a_combined_part_carries_defects_of_two_kinds() -> None:
    parts = [render_part(0, Split.TEST, COMBINED, index) for index in range(3)]
    for part in parts:
        assert len(set(part.kinds)) == 2 and set(part.kinds) <= set(DEFECTS)
    assert any(ndimage.label(part.mask, np.ones((3, 3)))[1] >= 2 for part in parts)  # they may lie on each other


@pytest.mark.parametrize("kind", sorted(DEFECTS))
def test_a_single_defect_stays_in_one_neighbourhood(kind: str) -> None:
    part = render_part(0, Split.TEST, kind, 2)
    rows, columns = np.nonzero(part.mask)
    assert part.kinds == (kind,)
    assert max(np.ptp(rows), np.ptp(columns)) < 130


def test_good_parts_have_no_mask_and_differ_from_one_another_moderately() -> None:
    parts = [render_part(0, Split.TRAIN, GOOD, index, SIZE) for index in range(4)]
    for i, part in enumerate(parts):
        assert not part.mask.any() and part.kinds == () and np.array_equal(part.image, part.clean)
        for other in parts[:i]:
            difference = np.abs(part.image.astype(int) - other.image).mean()
            assert 2 < difference < 30  # more than the sensor's noise, far less than another product


def test_training_and_test_parts_of_one_index_differ() -> None:
    train, test = (render_part(0, split, GOOD, 0, SIZE).image for split in (Split.TRAIN, Split.TEST))
    assert not np.array_equal(train, test)


def test_progress_counts_every_part_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_parts(tmp_path, train=2, good=1, defects=1, size=64, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 3 + len(KINDS)) for done in range(1, 4 + len(KINDS))]


def test_an_unknown_kind_or_a_size_too_small_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match=r"good, scratch, .*found 'rust'"):
        render_part(0, Split.TEST, "rust", 0)
    with pytest.raises(DataError, match="at least 64 px, found 32 px"):
        render_part(0, Split.TEST, GOOD, 0, size=32)
