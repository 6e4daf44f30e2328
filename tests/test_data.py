"""Trees of folders, published sets, their checks and their numbers."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from threecad.data.audit import audit
from threecad.data.catalog import DATASETS, recognise
from threecad.data.figures import write_figures
from threecad.data.findings import Finding, Severity
from threecad.data.readers import (
    check_sizes,
    exclude,
    fingerprint,
    list_categories,
    read_categories,
    read_category,
    scan_category,
)
from threecad.data.statistics import HEADER, HEADER_2, Range, measure, read_types, rectangle_aspect
from threecad.errors import DataError
from threecad.records import Split


def reason(call, *arguments, names: str = "") -> str:
    """The message with which a call fails: one to three lines that name the culprit."""
    with pytest.raises(DataError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert names in message
    assert len(message.splitlines()) <= 3
    return message


def paint(path: Path, level: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    """An image file of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, level, np.uint8)).save(path)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- a tree in order -------------------------------------------------------------------------------------------------


def test_a_category_has_its_samples_sorted_and_masks_beside_their_images(tree):
    category = read_category(tree)
    assert (category.name, category.root, category.folder) == ("plate", tree, tree / "plate")
    assert [sample.image.name for sample in category.train] == [f"{number:03d}.png" for number in range(12)]
    assert [(sample.defect, sample.image.stem) for sample in category.test] == [
        (defect, f"{number:03d}") for defect in ("good", "scratch") for number in range(4)
    ]
    for sample in category.test:
        expected = tree / "plate" / "ground_truth" / "scratch" / sample.image.name
        assert sample.mask == (expected if sample.is_defect else None)
        assert (sample.category, sample.split) == ("plate", Split.TEST)
    assert category.has_masks and not category.is_plain
    assert category.defects == ("scratch",)


def test_a_root_may_be_the_category_itself(tree):
    inside = read_category(tree / "plate")
    assert (inside.name, inside.root, inside.folder) == ("plate", tree / "plate", tree / "plate")
    assert [sample.image for sample in inside.samples] == [sample.image for sample in read_category(tree).samples]
    assert inside.path_in_root(inside.train[0].image) == "train/good/000.png"


def test_a_category_is_named_after_its_folder_from_inside_it_too(tree, monkeypatch):
    monkeypatch.chdir(tree / "plate")
    assert read_category(Path()).name == "plate"


def test_a_plain_folder_is_all_good_and_for_training(tree):
    folder = tree / "plate" / "train" / "good"
    plain = read_category(folder)
    assert plain.is_plain and not plain.has_masks
    assert (plain.name, len(plain.train), plain.test, plain.folder) == ("good", 12, (), folder)


def test_all_categories_are_read_sorted_and_named_ones_in_the_order_asked_for(tree):
    for name in ("bolt", "Axle"):
        shutil.copytree(tree / "plate", tree / name)
    assert list_categories(tree) == ["Axle", "bolt", "plate"]
    assert [category.name for category in read_categories(tree)] == ["Axle", "bolt", "plate"]
    assert [category.name for category in read_categories(tree, ["plate", "bolt", "plate"])] == ["plate", "bolt"]


def test_files_that_are_no_images_and_hidden_ones_are_ignored(tree):
    good = tree / "plate" / "train" / "good"
    for name in ("Thumbs.db", "types.csv", ".DS_Store", "._000.png"):
        (good / name).write_text("nothing")
    (good / "notes").mkdir()
    (tree / "README.md").write_text("nothing")
    (tree / ".cache" / "train" / "good").mkdir(parents=True)
    assert list_categories(tree) == ["plate"]
    assert len(read_category(tree).train) == 12


def test_the_case_of_a_suffix_does_not_matter(tree):
    good = tree / "plate" / "train" / "good"
    (good / "003.png").rename(good / "003.PNG")
    assert len(read_category(tree).train) == 12


def test_masks_may_be_called_stem_mask(tree):
    masks = tree / "plate" / "ground_truth" / "scratch"
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_mask.png")
    assert read_category(tree).test[-1].mask == masks / "003_mask.png"


def test_an_image_called_mask_keeps_its_own_mask(tree):
    plate = tree / "plate"
    paint(plate / "test" / "scratch" / "000_mask.png", 7)
    mask = paint(plate / "ground_truth" / "scratch" / "000_mask.png", 255)
    owners = {sample.image.stem: sample.mask for sample in read_category(tree).test if sample.is_defect}
    assert owners["000_mask"] == mask
    assert owners["000"] == mask.with_name("000.png")


def test_a_category_without_ground_truth_has_no_masks(tree):
    shutil.rmtree(tree / "plate" / "ground_truth")
    category = read_category(tree)
    assert not category.has_masks
    assert all(sample.mask is None for sample in category.test)
    assert category.defects == ("scratch",)


def test_a_category_without_test_images_can_be_trained_on(tree):
    shutil.rmtree(tree / "plate" / "test")
    shutil.rmtree(tree / "plate" / "ground_truth")
    assert read_category(tree).test == ()


def test_masks_of_good_images_are_ignored(tree):
    paint(tree / "plate" / "ground_truth" / "good" / "000.png")
    assert all(sample.mask is None for sample in read_category(tree).test if not sample.is_defect)


def test_links_in_a_circle_do_no_harm(tree):
    good = tree / "plate" / "train" / "good"
    try:
        (good / "up").symlink_to(tree, target_is_directory=True)
        (good / "self").symlink_to(good / "self")
        (tree / "again").symlink_to(tree, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert list_categories(tree) == ["plate"]
    assert len(read_category(tree).train) == 12
    assert list(audit(tree)) == []


# --- a tree out of order ---------------------------------------------------------------------------------------------


def test_a_missing_root_is_named(tmp_path):
    assert "found no such folder" in reason(list_categories, tmp_path / "nowhere", names="nowhere")


def test_a_file_as_root_is_named(tmp_path):
    (tmp_path / "file.txt").touch()
    assert "cannot be listed" in reason(list_categories, tmp_path / "file.txt", names="file.txt")


def test_a_root_without_data_says_what_was_expected_and_what_was_found(tmp_path):
    (tmp_path / "plate" / "train" / "fine").mkdir(parents=True)
    (tmp_path / "readme.md").touch()
    message = reason(list_categories, tmp_path, names=str(tmp_path))
    assert "train" in message and "good" in message and "plate, readme.md" in message
    assert "found nothing" in reason(list_categories, tmp_path / "plate" / "train" / "fine")


def test_a_misspelt_category_is_answered_with_the_nearest(tree):
    assert "no category 'plaet'" in (message := reason(read_category, tree, "plaet"))
    assert "did you mean 'plate'?" in message
    assert "did you mean 'plate'?" in reason(read_category, tree / "plate", "plates")
    assert "no category 'Plate'" in reason(read_categories, tree, ["plate", "Plate"])


def test_several_categories_and_no_name_is_an_error_that_lists_them(tree):
    shutil.copytree(tree / "plate", tree / "bolt")
    assert "bolt, plate" in reason(read_category, tree)


def test_an_empty_training_folder_is_named(tree):
    good = tree / "plate" / "train" / "good"
    for path in good.iterdir():
        path.unlink()
    assert "expected good images" in reason(read_category, tree, names=str(good))


def test_one_missing_mask_among_others_names_the_image_and_the_mask_expected(tree):
    (tree / "plate" / "ground_truth" / "scratch" / "002.png").unlink()
    message = reason(read_category, tree, names=str(tree / "plate" / "test" / "scratch" / "002.png"))
    assert "ground_truth/scratch/002.png" in message


def test_a_defect_without_a_mask_folder_beside_one_that_has_it_is_an_error(tree):
    paint(tree / "plate" / "test" / "dent" / "000.png")
    assert "expected a mask" in reason(read_category, tree, names=str(Path("test") / "dent" / "000.png"))


@pytest.mark.parametrize("defect", ["scratch", "dent"])
def test_a_mask_without_an_image_is_named(tree, defect):
    stray = paint(tree / "plate" / "ground_truth" / defect / "777.png", 255)
    assert f"an image of this name in test/{defect}" in reason(read_category, tree, names=str(stray))


def test_two_masks_of_one_image_are_an_error_naming_both(tree):
    second = paint(tree / "plate" / "ground_truth" / "scratch" / "001_mask.png", 255)
    assert "found 001.png too" in reason(read_category, tree, names=str(second))


def test_two_images_of_one_name_are_an_error_naming_both(tree):
    second = paint(tree / "plate" / "train" / "good" / "001.jpg")
    message = reason(read_category, tree)
    assert second.name in message and "001.png" in message


def test_images_in_a_folder_inside_are_not_left_out_unsaid(tree):
    inner = paint(tree / "plate" / "train" / "good" / "more" / "000.png").parent
    assert "directly in" in reason(read_category, tree, names=str(inner))


def test_several_problems_are_counted_and_the_first_is_named(tree):
    for number in (1, 3):
        (tree / "plate" / "ground_truth" / "scratch" / f"{number:03d}.png").unlink()
    message = reason(read_category, tree, names="001.png")
    assert "and 1 more" in message and "data verify" in message
    category, problems = scan_category(tree, "plate")
    assert [problem.path.name for problem in problems] == ["001.png", "003.png"]
    assert len(category.test) == 8


def test_a_mask_of_another_size_is_an_error_naming_both(tree):
    mask = paint(tree / "plate" / "ground_truth" / "scratch" / "001.png", 255, (48, 60))
    samples = {sample.image.stem: sample for sample in read_category(tree).test if sample.is_defect}
    assert "48×64, found 48×60" in reason(check_sizes, samples["001"], names=str(mask))
    check_sizes(samples["000"])
    check_sizes(read_category(tree).train[0])


# --- leaving images out ----------------------------------------------------------------------------------------------


def test_listed_images_are_left_out(tree, tmp_path):
    listed = tmp_path / "leave_out.txt"
    listed.write_text(
        "﻿# seen twice\n\nplate/train/good/003.png\n ./plate/test/scratch/001.png \nplate\\test\\good\\000.png\n"
    )
    category = exclude(read_category(tree), listed)
    assert len(category.train) == 11 and len(category.test) == 6
    assert "003.png" not in [sample.image.name for sample in category.train]


def test_a_line_that_matches_nothing_is_an_error_naming_its_number_and_the_nearest_path(tree, tmp_path):
    listed = tmp_path / "leave_out.txt"
    listed.write_text("# a comment\nplate/train/good/03.png\n")
    message = reason(exclude, read_category(tree), listed, names="leave_out.txt, line 2")
    assert "'plate/train/good/03.png'" in message and "nearest is 'plate/train/good/003.png'" in message


def test_lines_about_another_category_are_left_to_it_if_they_are_true(tree, tmp_path):
    shutil.copytree(tree / "plate", tree / "bolt")
    listed = tmp_path / "leave_out.txt"
    listed.write_text("bolt/train/good/003.png\n")
    assert [len(exclude(category, listed).train) for category in read_categories(tree)] == [11, 12]
    listed.write_text("bolt/train/good/333.png\n")
    assert "line 1" in reason(exclude, read_category(tree, "plate"), listed)


def test_a_list_that_cannot_be_read_or_leaves_nothing_is_an_error_naming_it(tree, tmp_path):
    category = read_category(tree)
    reason(exclude, category, tmp_path / "missing.txt", names="missing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    reason(exclude, category, tmp_path / "binary.txt", names="binary.txt")
    (tmp_path / "all.txt").write_text("\n".join(category.path_in_root(sample.image) for sample in category.train))
    assert "without a good training image" in reason(exclude, category, tmp_path / "all.txt", names="all.txt")


# --- the fingerprint -------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_change_with_the_place_or_the_order(tree, tmp_path):
    samples = read_category(tree).samples
    before = fingerprint(samples, sha256_of)
    assert len(before) == 16 and int(before, 16) >= 0
    assert fingerprint(samples[::-1], sha256_of) == before
    shutil.move(tree, tmp_path / "moved")
    assert fingerprint(read_category(tmp_path / "moved" / "plate").samples, sha256_of) == before


@pytest.mark.parametrize("change", ["image", "mask", "name", "split"])
def test_the_fingerprint_changes_with_bytes_and_places(tree, change):
    plate = tree / "plate"
    before = fingerprint(read_category(tree).samples, sha256_of)
    if change == "image":
        paint(plate / "train" / "good" / "000.png")
    elif change == "mask":
        paint(plate / "ground_truth" / "scratch" / "000.png", 255)
    elif change == "name":
        (plate / "train" / "good" / "000.png").rename(plate / "train" / "good" / "900.png")
    else:
        (plate / "train" / "good" / "000.png").rename(plate / "test" / "good" / "900.png")
    assert fingerprint(read_category(tree).samples, sha256_of) != before


# --- published sets --------------------------------------------------------------------------------------------------


def test_the_catalogue_adds_up_to_the_published_totals():
    def total(key: str) -> list[int]:
        categories = DATASETS[key].categories
        return [
            sum(getattr(category, what) for category in categories) for what in ("train", "good", "defect", "types")
        ]

    assert total("3cad") == [10493, 5084, 11462, 47]
    assert total("mvtec_ad") == [3629, 467, 1258, 73]
    assert total("visa") == [8659, 962, 1200, 12]


def test_a_published_set_is_recognised_by_its_folders_or_their_abbreviations():
    assert recognise(["Aluminum_Ipad", "CS"]) == "3cad"
    assert recognise(["bottle", "zipper"]) == "mvtec_ad"
    assert recognise(["candle", "pcb4"]) == "visa"
    assert recognise(["bottle", "Iron_Stator"]) is None
    assert recognise(["plate"]) is None
    assert recognise([]) is None


# --- the audit -------------------------------------------------------------------------------------------------------


def findings(root: Path) -> dict[str, Finding]:
    """What the audit finds, by the path relative to the root."""
    return {finding.path.relative_to(root).as_posix(): finding for finding in audit(root)}


def test_a_set_without_fault_has_no_findings(tree):
    assert list(audit(tree)) == []


def test_the_audit_goes_on_after_the_first_problem_and_lists_them_all(tree):
    plate = tree / "plate"
    (plate / "train" / "good" / "000.png").write_text("no image")
    (plate / "train" / "good" / "001.png").write_bytes((plate / "train" / "good" / "001.png").read_bytes()[:500])
    shutil.copy(plate / "test" / "good" / "000.png", plate / "train" / "good" / "002.png")
    shutil.copy(plate / "train" / "good" / "004.png", plate / "train" / "good" / "005.png")
    shutil.copy(plate / "test" / "good" / "001.png", plate / "test" / "scratch" / "000.png")
    paint(plate / "train" / "good" / "006.png", 50, (31, 64))
    masks = plate / "ground_truth" / "scratch"
    paint(masks / "000.png", 255, (48, 60))
    paint(masks / "001.png", 0)
    (masks / "002.png").unlink()
    mask = np.zeros((48, 64), np.uint8)
    mask[4:8, 4:8] = 1
    mask[4:6, 4:6] = 255
    Image.fromarray(mask).save(masks / "003.png")
    paint(masks / "900.png", 255)

    found = findings(tree)
    expected = {
        "plate/test/scratch/002.png": (Severity.ERROR, "expected a mask"),
        "plate/ground_truth/scratch/900.png": (Severity.ERROR, "expected an image of this name"),
        "plate/train/good/000.png": (Severity.ERROR, "cannot be read: expected a png"),
        "plate/train/good/001.png": (Severity.ERROR, "cannot be read: image file is truncated"),
        "plate/train/good/002.png": (Severity.WARNING, "found the bytes of plate/test/good/000.png"),
        "plate/train/good/005.png": (Severity.WARNING, "found the bytes of plate/train/good/004.png"),
        "plate/train/good/006.png": (Severity.WARNING, "found 31×64"),
        "plate/test/scratch/000.png": (Severity.WARNING, "found the bytes of plate/test/good/001.png"),
        "plate/ground_truth/scratch/001.png": (Severity.WARNING, "empty mask"),
        "plate/ground_truth/scratch/003.png": (Severity.WARNING, "found 1 too"),
    }
    sizes = "plate/ground_truth/scratch/000.png"  # of another size and all marked: two findings at one path
    assert found.keys() == expected.keys() | {sizes}
    for path, (severity, what) in expected.items():
        assert found[path].severity is severity
        assert what in found[path].what
        assert str(tree) not in found[path].what
    at_sizes = [finding for finding in audit(tree) if finding.path == tree / sizes]
    assert [finding.severity for finding in at_sizes] == [Severity.WARNING, Severity.ERROR]
    assert "48×64, found 48×60" in at_sizes[1].what


def test_the_audit_reports_its_progress(tree):
    seen: list[tuple[int, int]] = []
    list(audit(tree, lambda done, total: seen.append((done, total))))
    assert seen == [(done, 20) for done in range(1, 21)]


def test_a_copy_of_a_published_set_is_counted_against_it(tree):
    (tree / "plate").rename(tree / "Iron_Stator")
    found = [finding.what for finding in audit(tree)]
    assert found == [
        "expected 8 categories as in 3CAD, found 1; not here: Aluminum_Camera_Cover, Aluminum_Ipad, "
        "Aluminum_Middle_Frame, Aluminum_New_Middle_Frame, Aluminum_New_Ipad, Aluminum_Pc, Copper_Stator",
        "expected 653 training images as in 3CAD, found 12",
        "expected 295 good test images as in 3CAD, found 4",
        "expected 817 defective test images as in 3CAD, found 4",
        "expected 4 defect types as in 3CAD, found 1",
    ]


def test_what_cannot_be_evaluated_is_noted(tree):
    shutil.rmtree(tree / "plate" / "ground_truth")
    assert [(finding.severity, "image metrics only" in finding.what) for finding in audit(tree)] == [
        (Severity.NOTE, True)
    ]
    shutil.rmtree(tree / "plate" / "test")
    assert ["nothing to evaluate" in finding.what for finding in audit(tree)] == [True]
    assert ["a plain folder" in finding.what for finding in audit(tree / "plate" / "train" / "good")] == [True]


def test_a_root_without_data_cannot_be_audited(tmp_path):
    reason(lambda root: list(audit(root)), tmp_path, names=str(tmp_path))


# --- table 1 and figure 3 --------------------------------------------------------------------------------------------


def test_table_1_counts_images_sizes_regions_and_types(tree):
    plate = tree / "plate"
    mask = np.zeros((48, 64), np.uint8)
    mask[2:4, 2:4] = mask[4, 4] = mask[20:22, 30:42] = mask[40, 60] = 255  # the first two touch at a corner
    Image.fromarray(mask).save(plate / "ground_truth" / "scratch" / "000.png")
    paint(plate / "train" / "good" / "000.png", 9, (40, 80))
    (plate / "types.csv").write_text("image,scratch,dent\ntest/scratch/000.png,1,3\ntest/scratch/001.png,0,5\n")
    statistics = measure([read_category(tree)])
    assert statistics.rows() == [("plate", "12", "8", "4", "4", "1", "40~48", "64~80", "1~3/1~2")]
    assert len(HEADER) == len(statistics.rows()[0])
    assert statistics.categories[0].regions == Range(1, 3)
    assert sum(statistics.area_ratio.counts) == 4
    assert sum(statistics.aspect_ratio.counts) == 6


def test_table_2_counts_images_with_several_regions_and_with_several_types(tree):
    statistics = measure([read_category(tree)])
    assert statistics.rows_2() == [("plate", "16", "4", "✗", "-")]  # nobody says how many types are in an image
    mask = np.zeros((48, 64), np.uint8)
    mask[2:4, 2:4] = mask[20:22, 30:42] = 255
    Image.fromarray(mask).save(tree / "plate" / "ground_truth" / "scratch" / "000.png")
    (tree / "plate" / "types.csv").write_text("image,scratch,dent\ntest/scratch/002.png,1,3\n")
    statistics = measure([read_category(tree)])
    assert statistics.rows_2() == [("plate", "16", "4", "✓ 1", "✓ 1")]
    assert len(HEADER_2) == len(statistics.rows_2()[0])
    shutil.rmtree(tree / "plate" / "ground_truth")
    assert measure([read_category(tree)]).rows_2()[0][3] == "-"


def test_table_2_is_summed_over_those_categories_that_are_known(tree):
    shutil.copytree(tree / "plate", tree / "bolt")
    shutil.rmtree(tree / "bolt" / "ground_truth")
    assert measure(read_categories(tree)).rows_2()[-1] == ("All", "32", "8", "✗", "-")


def test_the_figures_show_every_bin_with_its_count_and_the_numbers_lie_beside(tree, tmp_path):
    statistics = measure([read_category(tree)])
    written = write_figures(tmp_path / "figures", statistics)
    assert [path.name for path in written] == [
        f"{name}{suffix}" for name in ("area_ratio", "aspect_ratio") for suffix in (".svg", ".csv")
    ]
    picture = ElementTree.parse(written[0]).getroot()
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    bars = [float(bar.get("height")) for bar in picture.iter("{http://www.w3.org/2000/svg}rect")][1:]
    counts = statistics.area_ratio.counts
    assert "Defect area ratio of 4 images" in words and [int(word) for word in words if word.isdigit()] == list(counts)
    assert np.argmax(bars) == np.argmax(counts) and [bar > 0 for bar in bars] == [count > 0 for count in counts]
    assert all(0 <= bar <= 270 for bar in bars)
    assert written[1].read_text().splitlines()[0] == "above,to,count,percent"


def test_a_set_without_defects_has_empty_figures(tree, tmp_path):
    assert len(write_figures(tmp_path, measure([read_category(tree / "plate" / "train" / "good")]))) == 4


def test_the_numbers_are_json_without_infinity(tree):
    content = measure([read_category(tree)]).content()
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["categories"][0]["defect"] == 4 and again["histograms"][1]["edges"][-1] is None


def test_several_categories_are_summed_in_a_last_line(tree):
    shutil.copytree(tree / "plate", tree / "bolt")
    shutil.rmtree(tree / "bolt" / "ground_truth")
    rows = measure(read_categories(tree)).rows()
    assert rows[0][0] == "bolt" and rows[0][-1] == "-/1~1"
    assert rows[-1] == ("All", "24", "16", "8", "8", "2", "-", "-", "-")


def test_the_histograms_count_every_number_once(tree):
    plate = tree / "plate"
    for number, width in enumerate((1, 2, 10, 64)):
        mask = np.zeros((48, 64), np.uint8)
        mask[:1, :width] = 255
        Image.fromarray(mask).save(plate / "ground_truth" / "scratch" / f"{number:03d}.png")
    statistics = measure([read_category(tree)])
    assert [row for row in statistics.aspect_ratio.rows() if row[2] != "0"] == [
        ("1", "1.25", "1", "25.0"),
        ("1.5", "2", "1", "25.0"),
        ("5", "10", "1", "25.0"),
        ("20", "inf", "1", "25.0"),
    ]
    assert statistics.aspect_ratio.median == pytest.approx(6)
    assert statistics.area_ratio.median == pytest.approx(6 / (48 * 64))


def test_a_set_without_defects_has_empty_histograms(tree):
    statistics = measure([read_category(tree / "plate" / "train" / "good")])
    assert statistics.rows() == [("good", "12", "0", "0", "0", "0", "48~48", "64~64", "-/-")]
    assert sum(statistics.area_ratio.counts) == 0 and math.isnan(statistics.area_ratio.median)


@pytest.mark.parametrize(
    ("region", "aspect"),
    [
        (np.ones((1, 1)), 1.0),
        (np.ones((1, 5)), 5.0),
        (np.ones((6, 2)), 3.0),
        (np.eye(7), 7.0),  # a stair of seven: 7√2 long, √2 wide
        (np.eye(7)[::-1], 7.0),
        (np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]), 1.0),
    ],
    ids=["a pixel", "a row", "a block", "a stair", "a stair down", "a plus"],
)
def test_the_smallest_rectangle_lies_as_the_region_does(region, aspect):
    assert rectangle_aspect(region > 0) == pytest.approx(aspect)


def test_the_smallest_rectangle_is_no_larger_than_at_any_of_a_thousand_angles():
    rows, columns = np.mgrid[:60, :60] - 30
    region = ((rows * 0.8 + columns * 0.6) / 25) ** 2 + ((columns * 0.8 - rows * 0.6) / 7) ** 2 < 1
    corners = np.argwhere(region)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    best = (math.inf, 0.0)
    for angle in np.linspace(0, np.pi / 2, 1000, endpoint=False):
        turned = corners.reshape(-1, 2) @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        sides = np.ptp(turned, axis=0)
        best = min(best, (sides.prod(), sides.max() / sides.min()))
    assert rectangle_aspect(region) == pytest.approx(best[1], rel=0.01)


def test_a_mask_of_another_size_stops_the_statistics_with_its_name(tree):
    mask = paint(tree / "plate" / "ground_truth" / "scratch" / "001.png", 255, (48, 60))
    reason(measure, read_categories(tree), names=str(mask))


def test_a_table_of_types_that_does_not_fit_is_an_error_naming_the_line(tree):
    table = tree / "plate" / "types.csv"
    assert read_types(read_category(tree)) == {}
    table.write_text("image,scratch\ntest/scratch/000.png,1\ntest/scratch/777.png,1\n")
    assert "777.png" in reason(read_types, read_category(tree), names=f"{table}, line 3")
    table.write_text("name,scratch\n")
    assert "column 'image'" in reason(read_types, read_category(tree), names=str(table))
