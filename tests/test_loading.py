"""Packs: decoded once, found again by content, whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threecad.data.loading import Rows, clear_packs, content_hashes, load_images, load_masks, packs
from threecad.data.readers import Category, read_category
from threecad.errors import DataError
from threecad.images import read_image, read_mask
from threecad.records import Sample, Split

SIZE = (32, 48)


@pytest.fixture
def plate(tree: Path) -> Category:
    return read_category(tree, "plate")


def decoded(plate: Category, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, int]:
    """The good training images, and how many had to be decoded for it."""
    reports: list[tuple[int, int]] = []
    images = load_images(plate.train, size, lambda done, count: reports.append((done, count)))
    assert reports in ([], [(number + 1, len(plate.train)) for number in range(len(plate.train))])
    return images, len(reports)


def repaint(path: Path, shade: int) -> None:
    Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(path)


def test_a_pack_holds_what_the_reader_reads(plate: Category) -> None:
    images, _ = decoded(plate)
    assert images.dtype == np.uint8 and images.shape == (12, *SIZE, 3)
    assert np.array_equal(images, np.stack([read_image(sample.image, SIZE) for sample in plate.train]))
    assert isinstance(images, np.memmap) and not images.flags.writeable


def test_masks_are_0_and_1_and_empty_for_good_images(plate: Category) -> None:
    masks = load_masks(plate.test, SIZE)
    assert masks.dtype == np.uint8 and masks.shape == (8, *SIZE)
    for sample, mask in zip(plate.test, masks, strict=True):
        expected = np.zeros(SIZE) if sample.mask is None else read_mask(sample.mask, SIZE)
        assert np.array_equal(mask, expected)
        assert mask.any() == sample.is_defect


def test_a_second_load_decodes_nothing(plate: Category) -> None:
    first, count = decoded(plate)
    again, repeated = decoded(plate)
    assert (count, repeated) == (12, 0)
    assert np.array_equal(first, again)
    assert len(packs()) == 1


def test_the_same_pictures_in_another_folder_are_the_same_pack(plate: Category, tree: Path, tmp_path: Path) -> None:
    decoded(plate)
    moved = shutil.copytree(tree, tmp_path / "moved")
    assert decoded(read_category(moved, "plate"))[1] == 0


def test_a_changed_file_gives_another_pack(plate: Category) -> None:
    before, _ = decoded(plate)
    repaint(plate.train[3].image, 7)
    after, count = decoded(plate)
    assert count == 12
    assert (after[3] == 7).all() and not (before[3] == 7).all()
    assert np.array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


def test_a_file_changed_to_one_of_equal_length_and_time_is_noticed(plate: Category) -> None:
    path = plate.train[0].image
    before, state = content_hashes([path]), path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content_hashes([path]) != before


def test_hashing_reports_only_the_files_that_it_has_to_read(plate: Category) -> None:
    paths = [sample.image for sample in plate.train]
    reports: list[tuple[int, int]] = []
    first = content_hashes(paths, lambda done, count: reports.append((done, count)))
    assert first == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert reports == [(number + 1, 12) for number in range(12)]
    repaint(paths[3], 7)
    reports.clear()
    again = content_hashes([*paths, paths[3]], lambda done, count: reports.append((done, count)))
    assert reports == [(1, 1)]
    assert again[:3] == first[:3] and again[3] == again[12] != first[3]


def test_a_file_name_that_is_not_utf_8_is_hashed_and_remembered(plate: Category) -> None:
    path = plate.train[0].image
    named = path.rename(path.parent / os.fsdecode(b"teil_\xfc.png"))
    reports: list[int] = []
    for _ in range(2):
        (found,) = content_hashes([named], lambda done, count: reports.append(done))
        assert found == hashlib.sha256(named.read_bytes()).hexdigest()
    assert reports == [1]


def test_a_link_to_nowhere_is_named_with_where_it_points(plate: Category, tmp_path: Path) -> None:
    path = plate.train[5].image
    path.unlink()
    path.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"005\.png is a link to .*nowhere\.png, which is not there"):
        decoded(plate)


def test_another_size_is_another_pack(plate: Category) -> None:
    decoded(plate)
    images, count = decoded(plate, (16, 16))
    assert count == 12 and images.shape == (12, 16, 16, 3)
    assert sorted(pack.size for pack in packs()) == [(16, 16), SIZE]


def test_no_samples_are_an_empty_array_and_no_pack() -> None:
    assert load_images([], SIZE).shape == (0, *SIZE, 3)
    assert load_masks([], SIZE).shape == (0, *SIZE)
    assert packs() == []


def test_packs_can_be_listed_and_cleared(plate: Category, cache: Path) -> None:
    decoded(plate)
    load_masks(plate.test, SIZE)
    listed = {(pack.category, pack.kind, pack.count, pack.size) for pack in packs()}
    assert listed == {("plate", "images", 12, SIZE), ("plate", "masks", 8, SIZE)}
    assert sum(pack.bytes for pack in packs()) >= 12 * 32 * 48 * 3 + 8 * 32 * 48
    assert clear_packs() >= sum(pack.bytes for pack in packs())
    assert packs() == [] and not any((cache / "pixels").rglob("*.npy"))
    assert clear_packs() == 0
    assert decoded(plate)[1] == 12


def test_clearing_leaves_what_is_not_ours(plate: Category, cache: Path) -> None:
    decoded(plate)
    mine, ours = cache / "pixels" / "holiday.npy", cache / "pixels" / ".building-x1y2"
    mine.write_bytes(b"mine")
    ours.mkdir()
    (ours / "pack.npy").write_bytes(b"half")
    assert clear_packs() > 0
    assert [path.name for path in (cache / "pixels").iterdir()] == ["holiday.npy"]
    assert clear_packs() == 0


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_pack_is_built_again(plate: Category, damage: str) -> None:
    whole = decoded(plate)[0].copy()
    (pack,) = packs()
    content = pack.path.read_bytes()
    pack.path.unlink()
    pack.path.write_bytes({"cut": content[:-100], "garbage": b"\x00" * 999, "empty": b""}[damage])
    again, count = decoded(plate)
    assert count == 12 and np.array_equal(again, whole)


def test_a_damaged_memory_of_hashes_is_forgotten(plate: Category, cache: Path) -> None:
    decoded(plate)
    (cache / "pixels" / "hashes.sqlite").write_bytes(b"not a database, but something of sixteen bytes or more" * 20)
    assert decoded(plate)[1] == 0
    assert decoded(plate)[1] == 0


def test_two_processes_may_build_the_same_pack_at_once(plate: Category, tree: Path, cache: Path) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from threecad.data.loading import load_images; from threecad.data.readers import read_category\n"
        f"images = load_images(read_category(Path(sys.argv[1]), 'plate').train, {SIZE})\n"
        "print(hashlib.sha256(images.tobytes()).hexdigest())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tree)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert results[0] == results[1] and len(results[0]) == 65
    assert decoded(plate)[1] == 0
    assert nothing_half_written(cache)


def nothing_half_written(cache: Path) -> bool:
    names = {path.suffix for path in (cache / "pixels").iterdir()} if cache.is_dir() else set()
    return names <= {".npy", ".json", ".sqlite"}


def test_an_unreadable_image_leaves_no_pack(plate: Category, cache: Path) -> None:
    plate.train[5].image.write_bytes(plate.train[5].image.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/good/005\.png"):
        decoded(plate)
    assert packs() == [] and nothing_half_written(cache)


def test_an_image_that_vanishes_is_named(plate: Category) -> None:
    plate.train[5].image.unlink()
    with pytest.raises(DataError, match=r"005\.png was there a moment ago and is gone now"):
        decoded(plate)


def test_a_mask_of_another_size_than_its_image_names_both(plate: Category) -> None:
    sample = next(sample for sample in plate.test if sample.mask)
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(sample.mask)
    with pytest.raises(DataError, match=r"12×10|10×12") as refused:
        load_masks(plate.test, SIZE)
    assert sample.image.name in str(refused.value)


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(
    plate: Category, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    monkeypatch.setenv("THREECAD_CACHE", str(blocked))
    with pytest.raises(DataError, match="THREECAD_CACHE") as refused:
        decoded(plate)
    assert len(str(refused.value).splitlines()) <= 3
    assert blocked.read_text() == "a file"


@contextmanager
def largest_file(count: int) -> Iterator[None]:
    """Within, writing beyond `count` bytes of a file fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_says_how_much_is_needed_and_leaves_nothing(plate: Category, cache: Path) -> None:
    with largest_file(32_000), pytest.raises(DataError) as refused:
        decoded(plate)
    text = str(refused.value)
    assert "cannot keep decoded images" in text and "0.00 GB needed" in text and "THREECAD_CACHE" in text
    assert packs() == [] and nothing_half_written(cache)
    assert decoded(plate)[1] == 12


def test_what_a_killed_process_left_is_swept_after_a_day(plate: Category, cache: Path) -> None:
    old, new = cache / "pixels" / ".building-old", cache / "pixels" / ".building-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "pack.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 100_000,) * 2)
    decoded(plate)
    assert not old.exists() and new.exists()


def test_rows_are_chosen_rows_of_a_pack() -> None:
    pack = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    rows = Rows(pack, np.array([4, 0, 2]))
    assert len(rows) == 3
    assert np.array_equal(rows[np.array([0, 1])], pack[[4, 0]])
    assert np.array_equal(np.stack(list(rows)), pack[[4, 0, 2]])


# --- how files become pixels -----------------------------------------------------------------------------------------


def test_another_number_of_bits_is_another_pack_and_another_limit_is_not(tmp_path: Path) -> None:
    levels = np.linspace(0, 4095, 48 * 64).reshape(48, 64).astype(np.uint16)
    image = tmp_path / "deep.png"
    Image.fromarray(levels).save(image)
    samples = [Sample(image, None, "plate", "good", Split.TRAIN)]
    whole, twelve = (load_images(samples, (48, 64), decoding=decoding) for decoding in ({}, {"bits": 12}))
    assert whole.max() == 16 and twelve.max() == 255
    load_images(samples, (48, 64), decoding={"bits": 12, "max_pixels": 5000})
    assert len(packs()) == 2


def test_an_image_of_more_pixels_than_allowed_is_refused_while_it_is_loaded(plate: Category) -> None:
    with pytest.raises(DataError, match=r"--set data\.max_pixels=3072 allows it"):
        load_images(plate.train, SIZE, decoding={"max_pixels": 3071})
    with pytest.raises(DataError, match=r"--set data\.max_pixels=3072 allows it"):
        load_masks(plate.test, SIZE, decoding={"max_pixels": 3071})


def test_a_run_reads_all_images_as_its_settings_say(tmp_path: Path) -> None:
    import threecad

    rng = np.random.default_rng(0)
    for number in range(4):
        (tmp_path / "plate").mkdir(exist_ok=True)
        pixels = rng.integers(0, 4096, (48, 64)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "plate" / f"{number}.png")
    method = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}
    threecad.fit("padim", tmp_path / "plate", tmp_path / "run", settings={"method": method, "data": {"bits": 12}})
    assert threecad.load(tmp_path / "run").decoding == {"bits": 12}
    assert [pack.count for pack in packs()] == [4]
