"""What `threecad data verify` says of a set: everything at which a fit or an evaluation would stop, or mislead."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import plant, plate, save, scratch
from threecad.data.audit import audit
from threecad.data.duplicates import groups_alike, look_of
from threecad.data.findings import Finding, Severity, write_exclusions
from threecad.data.folders import walk_images
from threecad.data.inspection import Checks
from threecad.data.readers import exclude, read_category
from threecad.errors import DataError


def found(root: Path, **checks: object) -> list[tuple[Severity, str, str]]:
    """Findings as (severity, path in the root, what)."""
    return [
        (finding.severity, finding.path.relative_to(root).as_posix(), finding.what)
        for finding in audit(root, checks=Checks(**checks))
    ]


def the_one(root: Path, **checks: object) -> tuple[Severity, str, str]:
    (finding,) = found(root, **checks)
    return finding


def textured(seed: int) -> np.ndarray:
    """A picture (96, 128, 3) uint8 that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8))
    return np.repeat(np.asarray(coarse.resize((128, 96), Image.Resampling.BILINEAR))[..., None], 3, axis=2)


# --- what would go missing unsaid ------------------------------------------------------------------------------------


def test_pictures_of_a_kind_that_is_not_read_are_named_and_stop_a_fit(tree):
    good = tree / "plate" / "train" / "good"
    for number in range(3):
        (good / f"w{number}.webp").touch()
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.ERROR, "plate/train/good")
    assert "found 3 of .webp" in what
    with pytest.raises(DataError, match=r"3 of \.webp"):
        read_category(tree)


def test_a_defect_type_of_pictures_that_are_not_read_is_named(tree):
    (tree / "plate" / "test" / "dent").mkdir()
    (tree / "plate" / "test" / "dent" / "000.webp").touch()
    assert "plate/test/dent" in the_one(tree)[1]


@pytest.mark.parametrize("inside", ["more", "more/and/more"])
def test_images_however_deep_are_not_left_out_unsaid(tree, inside):
    save(tree / "plate" / "train" / "good" / inside / "x.png", plate(77))
    severity, path, _ = the_one(tree)
    assert (severity, path) == (Severity.ERROR, "plate/train/good/more")


def test_images_beside_the_folders_that_say_what_they_show_are_named(tree):
    save(tree / "plate" / "test" / "x.png", plate(77))
    assert the_one(tree)[:2] == (Severity.ERROR, "plate/test")


def test_a_training_folder_that_is_not_learnt_from_is_named(tree):
    save(tree / "plate" / "train" / "bad" / "x.png", plate(77))
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.WARNING, "plate/train/bad") and "left out" in what
    assert len(read_category(tree).train) == 12


def test_a_folder_beside_the_categories_that_looks_like_one_is_named(tree):
    save(tree / "bolt" / "train" / "fine" / "x.png", plate(77))
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.WARNING, "bolt") and "'plate'" in what


def test_thumbnails_of_storage_devices_are_no_parts(tree):
    good = tree / "plate" / "train" / "good"
    for folder in ("@eaDir/000.png", "__MACOSX", "#recycle"):
        save(good / folder / "thumb.png", plate(77))
    assert found(tree) == []
    assert [path.name for path in walk_images(good)] == [f"{number:03d}.png" for number in range(12)]


def test_a_walk_goes_through_all_folders_but_those_left_out_and_follows_no_link(tree):
    out = tree / "plate" / "out"
    save(out / "maps" / "x.png", plate(1))
    try:
        (out / "up").symlink_to(tree, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert sum(1 for _ in walk_images(tree)) == 25
    assert sum(1 for _ in walk_images(tree, {(out / "maps").resolve()})) == 24


def test_a_link_to_nowhere_is_called_so(tree):
    try:
        (tree / "plate" / "train" / "good" / "zz.png").symlink_to("/nonexistent/x.png")
    except OSError:
        pytest.skip("this system makes no links")
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.ERROR, "plate/train/good/zz.png") and "link to /nonexistent/x.png" in what


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_that_are_jpeg_are_refused_with_the_reason_and_not_called_missing(tree):
    masks = tree / "plate" / "ground_truth" / "scratch"
    for path in list(masks.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.ERROR, "plate/ground_truth/scratch")
    assert "found 4 of jpg" in what and "blurs" in what


def test_a_mask_called_otherwise_is_told_the_names_that_are_read(tree):
    masks = tree / "plate" / "ground_truth" / "scratch"
    (masks / "000.png").rename(masks / "000_MASK.PNG")
    assert found(tree) == []
    (masks / "001.png").rename(masks / "001_gt.png")
    whats = [what for _, _, what in found(tree)]
    assert any("NAME.png or NAME_mask.png" in what for what in whats)
    assert not any("no ground_truth" in what for what in whats)


def test_masks_of_many_levels_are_one_finding(tree):
    masks = tree / "plate" / "ground_truth" / "scratch"
    for number in range(4):
        save(masks / f"{number:03d}.png", scratch(number) // 255 * (number + 1))
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.WARNING, "plate/ground_truth/scratch/000.png")
    assert "4 levels from 1 to 4 too in 4 masks" in what


def test_a_defect_that_vanishes_at_the_evaluation_s_size_is_named_where_it_is_asked_for(tree):
    mask = np.zeros((48, 64), np.uint8)
    mask[0, 0] = 255
    path = save(tree / "plate" / "ground_truth" / "scratch" / "001.png", mask)
    assert found(tree) == []
    severity, where, what = the_one(tree, evaluation_size=16)
    assert (severity, where) == (Severity.WARNING, path.relative_to(tree).as_posix()) and "at 16×16" in what


# --- what evaluate or fit would stop at, and what they would make of it -----------------------------------------------


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "normal"])
def test_a_folder_that_seems_to_hold_good_test_parts_is_said_to_count_as_a_defect(tree, name):
    shutil.rmtree(tree / "plate" / "ground_truth")
    (tree / "plate" / "test" / "good").rename(tree / "plate" / "test" / name)
    findings = found(tree)
    assert (Severity.WARNING, f"plate/test/{name}") in [finding[:2] for finding in findings]
    assert any(severity is Severity.ERROR and "found 0 good and 8 defective" in what for severity, _, what in findings)


@pytest.mark.parametrize(("lost", "rest"), [("good", "0 good and 4 defective"), ("scratch", "4 good and 0 defective")])
def test_test_images_of_one_side_only_are_an_error(tree, lost, rest):
    shutil.rmtree(tree / "plate" / "test" / lost)
    shutil.rmtree(tree / "plate" / "ground_truth")
    severity, _, what = the_one(tree)
    assert severity is Severity.ERROR and rest in what


def test_test_images_alone_are_a_category_that_can_be_evaluated(tree):
    shutil.rmtree(tree / "plate" / "train")
    category = read_category(tree)
    assert (category.name, category.train, len(category.test), category.has_masks) == ("plate", (), 8, True)
    severity, _, what = the_one(tree)
    assert severity is Severity.NOTE and "nothing to fit" in what
    inside = read_category(tree / "plate")
    assert len(inside.test) == 8 and inside.path_in_root(inside.test[0].image) == "test/good/000.png"


def test_few_good_images_are_a_warning(tree):
    for path in sorted((tree / "plate" / "train" / "good").iterdir())[2:]:
        path.unlink()
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.WARNING, "plate/train/good") and "found 2" in what


def test_images_that_a_square_squeezes_are_one_warning(tree):
    for number in range(2):
        save(tree / "plate" / "train" / "good" / f"long{number}.png", textured(number).repeat(16, axis=1)[:40])
    severity, _, what = the_one(tree)
    assert severity is Severity.WARNING and "40×2048 and 1 more" in what


def test_a_camera_of_twelve_bits_is_recognised_and_the_setting_named(tree):
    good = tree / "plate" / "train" / "good"
    for path in good.iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) << 4
        Image.fromarray(grey).save(path)
    asked = [(severity, path) for severity, path, what in found(tree) if "--set data.bits=12" in what]
    assert asked == [(Severity.WARNING, "plate")]
    assert found(tree, bits=12) == []


def test_sixteen_bits_that_use_their_range_are_no_finding(tree):
    for number, path in enumerate((tree / "plate" / "train" / "good").iterdir()):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * (200 + number)).save(path)
    assert found(tree) == []


def test_an_image_of_too_many_pixels_is_told_the_setting(tree):
    first = found(tree, max_pixels=3071)[0]
    assert first[0] is Severity.ERROR and "data.max_pixels=3072" in first[2]


# --- copies ----------------------------------------------------------------------------------------------------------


def test_a_picture_saved_again_smaller_and_compressed_is_found_in_the_other_split(tree):
    good = tree / "plate" / "train" / "good"
    for number in range(12):
        save(good / f"{number:03d}.png", textured(number))
    Image.fromarray(textured(4)).resize((96, 72)).save(tree / "plate" / "test" / "good" / "again.jpg", quality=80)
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.WARNING, "plate/train/good/004.png")
    assert "looks the same as plate/test/good/again.jpg" in what


def test_pictures_of_one_split_that_look_the_same_are_a_note_with_their_number(tree):
    good = tree / "plate" / "train" / "good"
    for number in range(12):
        save(good / f"{number:03d}.png", textured(number))
    for number in range(2):
        save(good / f"copy{number}.png", np.clip(textured(5).astype(int) + number + 1, 0, 255).astype(np.uint8))
    severity, path, what = the_one(tree)
    assert (severity, path) == (Severity.NOTE, "plate/train/good/005.png") and "(3 in all)" in what


def test_parts_in_one_pose_are_not_called_copies():
    looks = [look_of(plate(seed)) for seed in range(40)]
    assert groups_alike(looks) == []
    assert groups_alike([]) == groups_alike(looks[:1]) == []


def test_of_few_pictures_nothing_is_said_but_of_equal_files(tree):
    good = tree / "plate" / "train" / "good"
    for path in good.iterdir():
        path.unlink()
    save(good / "000.png", textured(1))
    Image.fromarray(textured(1)).resize((96, 72)).save(good / "001.png")
    shutil.copy(good / "000.png", good / "002.png")
    alike = [what for _, _, what in found(good) if "looks the same" in what or "bytes" in what]
    assert alike == ["expected different images, found the bytes of 000.png"]


def test_groups_of_copies_do_not_depend_on_how_many_are_compared_at_a_time(monkeypatch):
    looks = [look_of(textured(seed)) for seed in range(20)]
    looks += [look_of(np.clip(textured(seed) // 2 + 60, 0, 255).astype(np.uint8)) for seed in (3, 11)]
    assert groups_alike(looks) == [[3, 20], [11, 21]]
    monkeypatch.setattr("threecad.data.duplicates._ROWS", 3)
    assert groups_alike(looks) == [[3, 20], [11, 21]]


def test_flat_pictures_are_like_no_other():
    assert groups_alike([look_of(np.full((40, 40, 3), level, np.uint8)) for level in (10, 90)]) == []


# --- parts on both sides, and what to leave out ----------------------------------------------------------------------


def test_images_of_one_part_on_both_sides_are_named_by_a_rule(tree):
    plate_ = tree / "plate"
    for number, path in enumerate(sorted((plate_ / "train" / "good").iterdir())):
        path.rename(path.with_name(f"part{number // 2}_{number}.png"))
    (plate_ / "test" / "good" / "000.png").rename(plate_ / "test" / "good" / "part3_view9.png")
    severity, path, what = the_one(tree, part=r"part(\d+)_")
    assert (severity, path) == (Severity.WARNING, "plate/train/good/part3_6.png")
    assert "part '3' on one side, found 2 of its images among training, 1 among test images" in what


def test_a_rule_that_finds_no_part_is_said_and_one_that_is_no_expression_is_refused(tree):
    assert "by 'nothing' in the paths of 'plate', found none" in the_one(tree, part="nothing")[2]
    with pytest.raises(DataError, match=r"expected a regular expression .*'\('"):
        found(tree, part="(")


def test_what_is_written_for_exclusion_makes_the_findings_go_away(tree, tmp_path):
    plate_ = tree / "plate"
    shutil.copy(plate_ / "test" / "good" / "000.png", plate_ / "train" / "good" / "002.png")
    shutil.copy(plate_ / "train" / "good" / "004.png", plate_ / "train" / "good" / "005.png")
    (plate_ / "train" / "good" / "006.png").write_text("no image")
    listed = tmp_path / "leave_out.txt"
    findings: list[Finding] = list(audit(tree))
    assert write_exclusions(listed, tree, findings) == 3
    left = exclude(read_category(tree), listed)
    assert {sample.image.stem for sample in left.train} == {f"{n:03d}" for n in range(12)} - {"002", "005", "006"}
    assert write_exclusions(listed, plant(tmp_path / "clean"), []) == 0
    assert exclude(read_category(tree), listed) == read_category(tree)
