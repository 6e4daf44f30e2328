"""Outlines in JSON become masks, types and a tree; what does not fit is refused by name."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import plant, plate, save
from threecad.data.importing import import_data
from threecad.data.labels import coco, read_labels
from threecad.data.readers import read_category
from threecad.data.statistics import measure, read_types
from threecad.errors import DataError
from threecad.images import read_image, read_mask

SIZE = (48, 64)
SQUARE = [[10, 10], [19, 10], [19, 19], [10, 19]]  # 10×10 pixels with its outline


def labelme(folder: Path, name: str, drawn: list[dict], **others: object) -> Path:
    """An image with its labelme file."""
    save(folder / f"{name}.png", plate(len(name) + len(drawn)))
    content = {"imagePath": f"{name}.png", "imageHeight": 48, "imageWidth": 64, "imageData": None, "shapes": drawn}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**content, **others}))
    return file


def shape(kind: str, points: list, label: str = "scratch", **others: object) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **others}


def png(pixels: np.ndarray) -> str:
    """A picture as labelme stores it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def one_mask(folder: Path) -> np.ndarray:
    (labelled,) = read_labels(folder)
    return labelled.mask()


def refusal(source: Path) -> str:
    """What is said of the labels, in at most three lines, and that nothing was written."""
    with pytest.raises(DataError) as refused:
        import_data(source, source.parent / "out")
    assert not (source.parent / "out").exists()
    assert [path.name for path in source.parent.iterdir() if path.name.startswith(".threecad")] == []
    message = str(refused.value)
    assert len(message.splitlines()) <= 3
    return message


# --- labelme ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "pixels"),
    [
        (shape("polygon", SQUARE), 100),
        (shape("rectangle", [[19, 19], [10, 10]]), 100),
        (shape("rectangle", SQUARE), 100),
        (shape("line", [[10, 20], [30, 20]]), 200),
        ({"label": "scratch", "points": SQUARE}, 100),
    ],
    ids=["polygon", "rectangle", "rectangle of four corners", "line", "without a shape_type"],
)
def test_a_shape_covers_its_pixels(tmp_path, drawn, pixels):
    labelme(tmp_path, "part", [drawn])
    mask = one_mask(tmp_path)
    assert mask.shape == SIZE and mask.dtype == bool
    assert mask.sum() == pytest.approx(pixels, abs=15)
    assert mask[20 if drawn.get("shape_type") == "line" else 15, 15]


def test_a_circle_covers_the_disc_around_its_centre(tmp_path):
    labelme(tmp_path, "part", [shape("circle", [[30, 24], [36, 32]])])
    rows, columns = np.mgrid[:48, :64]
    distance = np.hypot(rows - 24, columns - 30)
    mask = one_mask(tmp_path)
    assert mask[distance < 9].all() and not mask[distance > 11].any()


def test_a_mask_shape_lies_where_its_box_says(tmp_path):
    patch = np.array([[0, 255, 0], [255, 255, 255]], np.uint8)
    labelme(tmp_path, "part", [shape("mask", [[5, 7], [7, 8]], mask=png(patch))])
    expected = np.zeros(SIZE, bool)
    expected[7:9, 5:8] = patch > 0
    np.testing.assert_array_equal(one_mask(tmp_path), expected)


@pytest.mark.parametrize("path", ["..\\images\\part.png", "C:\\Users\\qa\\part.png", "/home/qa/part.png", "", None])
def test_an_image_is_found_by_name_whatever_path_the_labeller_s_computer_had(tmp_path, path):
    labelme(tmp_path, "part", [shape("polygon", SQUARE)], imagePath=path)
    (labelled,) = read_labels(tmp_path)
    assert labelled.image == tmp_path / "part.png"


def test_images_without_labels_or_shapes_are_good(tmp_path):
    labelme(tmp_path, "a", [])
    save(tmp_path / "more" / "b.png", plate(2))
    labelme(tmp_path, "c", [shape("polygon", SQUARE)])
    found = [(one.image.name, len(one.marks)) for one in read_labels(tmp_path)]
    assert found == [("a.png", 0), ("c.png", 1), ("b.png", 0)]


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (shape("polygon", SQUARE[:2]), "shape 1 ('scratch'): expected a polygon of three corners with an area"),
        (shape("polygon", [[1, 1], [5, 5], [9, 9]]), "expected a polygon of three corners with an area, found (1, 1)"),
        (shape("rectangle", [[4, 4], [4, 9]]), "expected a rectangle of two corners with an area"),
        (shape("circle", [[4, 4], [4, 4]]), "expected a circle of a centre and a point on it"),
        (shape("line", [[4, 4], [4, 4]]), "expected a line of two different points"),
        (shape("polygon", [[100, 100], [120, 100], [110, 130]]), "in an image of 48×64 pixels, found it outside"),
        (shape("point", [[4, 4]]), "expected one of polygon, rectangle, circle, line, linestrip, mask, found 'point'"),
        (shape("polygon", [["a", 1], [2, 3], [4, 5]]), "expected points of two numbers each"),
        (shape("polygon", SQUARE, label=" "), "shape 1: expected a label that names the defect"),
        (shape("polygon", SQUARE, label="OK"), "expected the name of a defect on every shape, found 'OK'"),
        (shape("polygon", SQUARE, label="../.."), "expected a kind of defect that can name a folder, found '../..'"),
        (shape("mask", [[5, 7], [7, 8]], mask="no picture"), "expected a mask as a PNG picture in base64"),
        (shape("mask", [[60, 7], [70, 8]], mask=png(np.full((2, 11), 255, np.uint8))), "marked pixels inside 48×64"),
        ("scratch", "shape 1: expected a label that names the defect"),
    ],
)
def test_a_shape_that_marks_nothing_or_is_none_is_refused_by_name(tmp_path, drawn, message):
    labelme(tmp_path / "parts", "part", [drawn])
    assert message in refusal(tmp_path / "parts")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"imageHeight": 480}, "expected labels of part.png, 48×64, found some for 480×64 pixels"),
        ({"shapes": "none"}, "expected a list of shapes, found str"),
    ],
)
def test_labels_of_another_image_are_refused(tmp_path, others, message):
    labelme(tmp_path / "parts", "part", [shape("polygon", SQUARE)], **others)
    assert message in refusal(tmp_path / "parts")


def test_labels_without_their_image_and_labels_that_are_cut_off_are_named(tmp_path):
    file = labelme(tmp_path / "parts", "part", [shape("polygon", SQUARE)])
    (tmp_path / "parts" / "part.png").rename(tmp_path / "parts" / "other.png")
    assert "expected its image 'part.png' beside it" in refusal(tmp_path / "parts")
    (tmp_path / "parts" / "other.png").rename(tmp_path / "parts" / "part.png")
    file.write_text(file.read_text()[:40])
    assert "part.json cannot be read as JSON" in refusal(tmp_path / "parts")


# --- COCO ------------------------------------------------------------------------------------------------------------


def annotations(folder: Path, segmentation: object, **others: object) -> Path:
    """Two images, the first with an annotation."""
    for name in ("a", "b"):
        save(folder / "images" / f"{name}.png", plate(ord(name)))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "dent"}],
        "annotations": [{"id": 31, "image_id": 1, "category_id": 7, "segmentation": segmentation, "iscrowd": 0}],
    }
    (folder / "labels.json").write_text(json.dumps({**content, **others}))
    return folder


def encoded(runs: list[int]) -> str:
    """Run lengths as text, the way COCO's tools write them."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def region() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[3:30, 5:9] = mask[20:22, 40:60] = mask[47, 63] = True
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, those of the background first."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes])).tolist()


def test_outlines_of_coco_are_joined(tmp_path):
    annotations(tmp_path, [[10, 10, 19, 10, 19, 19, 10, 19], [30, 30, 35, 30, 35, 35, 30, 35]])
    marked, good = read_labels(tmp_path)
    assert list(marked.masks_by_kind()) == ["dent"] and marked.mask().sum() == 136
    assert good.marks == () and not good.mask().any()


@pytest.mark.parametrize("as_text", [False, True])
def test_run_lengths_of_coco_give_the_mask_back(tmp_path, as_text):
    runs = runs_of(region())
    annotations(tmp_path, {"size": [48, 64], "counts": encoded(runs) if as_text else runs})
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.json")[0].mask(), region())


def test_run_lengths_as_coco_s_own_tools_write_them_are_read():
    # A 4×3 mask whose columns are 0110, 0110, 0000: runs 1 2 2 2 5.
    assert coco._decoded("12203", "here") == [1, 2, 2, 2, 5]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[10, 10, 19, 10]], "annotation 31 ('dent'): expected a polygon of three corners"),
        ([[10, 10, 19]], "expected an outline of pairs of numbers"),
        ([], "expected a segmentation of outlines or run lengths"),
        ({"size": [64, 48], "counts": [3072]}, "expected run lengths over 48×64 pixels, found [64, 48]"),
        ({"size": [48, 64], "counts": [10, 5]}, "and runs of 15 in all"),
        ({"size": [48, 64], "counts": [3072]}, "expected a marked pixel, found none"),
        ({"size": [48, 64], "counts": "é"}, "found the character 'é' in them"),
        ({"size": [48, 64], "counts": [-1, 3073]}, "expected run lengths of whole numbers"),
    ],
)
def test_an_annotation_that_marks_nothing_is_refused_by_name(tmp_path, segmentation, message):
    assert message in refusal(annotations(tmp_path / "parts", segmentation))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"categories": []}, "annotation 31: expected the id of a category, found 7"),
        ({"categories": None}, "expected a list of objects called 'categories', found None"),
        ({"images": [{"id": 1, "file_name": "c.png"}]}, "image 1: expected 'c.png' in"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}]},
            "expected 48×64 as a.png has, found 9×9",
        ),
        ({"images": [{"id": 2, "file_name": "b.png"}]}, "annotation 31: expected the id of an image, found 1"),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "found b.png not listed"),
        (
            {"images": [{"id": 1, "file_name": "a.png"}] * 2},
            "image 2: expected an id of its own",
        ),
    ],
)
def test_a_coco_file_that_does_not_fit_its_images_is_refused(tmp_path, others, message):
    source = annotations(tmp_path / "parts", [[10, 10, 19, 10, 19, 19, 10, 19]], **others)
    assert message in refusal(source)


@pytest.mark.parametrize("name", ["C:\\data\\a.png", "/data/set/a.png", "set/train/a.png"])
def test_a_coco_image_is_found_by_its_name_where_its_folder_was_another_computer_s(tmp_path, name):
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "b.png"}]
    annotations(tmp_path, [[10, 10, 19, 10, 19, 19, 10, 19]], images=images)
    assert [one.image.name for one in read_labels(tmp_path)] == ["a.png", "b.png"]


# --- the tree --------------------------------------------------------------------------------------------------------


def test_labelled_images_become_a_tree_with_masks_and_types(tmp_path):
    parts = tmp_path / "covers"
    for number in range(8):
        save(parts / f"good{number}.png", plate(number))
    labelme(parts, "one", [shape("polygon", SQUARE)])
    labelme(parts, "two", [shape("polygon", SQUARE, "deep dent"), shape("line", [[1, 40], [5, 40]], "scratch")])
    imported = import_data(parts, tmp_path / "data")
    assert [(one.split, one.defect, one.count) for one in imported] == [
        ("train", "good", 6),
        ("test", "good", 2),
        ("test", "scratch", 1),
        ("test", "deep_dent", 1),
    ]
    category = read_category(tmp_path / "data")
    assert (category.name, len(category.train), category.defects) == ("covers", 6, ("deep_dent", "scratch"))
    two = next(sample for sample in category.test if sample.image.stem == "two")
    assert two.defect == "deep_dent"
    np.testing.assert_array_equal(read_image(two.image), read_image(parts / "two.png"))
    assert read_mask(two.mask).sum() == read_labels(parts)[-1].mask().sum() > 100
    assert read_types(category) == {two.image: 2, category.test[-1].image: 1}
    assert measure([category]).categories[0].several_types == 1


def test_images_of_one_name_in_several_folders_stay_apart(tmp_path):
    for folder in ("monday", "tuesday"):
        save(tmp_path / "parts" / folder / "1.png", plate(len(folder)))
    labelme(tmp_path / "parts", "x", [shape("polygon", SQUARE)])
    import_data(tmp_path / "parts", tmp_path / "data", category="plate", test_share=0)
    train = read_category(tmp_path / "data", "plate").train
    assert [sample.image.name for sample in train] == ["1.png", "tuesday_1.png"]


def test_a_published_set_keeps_its_split(tmp_path):
    source = plant(tmp_path / "source")
    save(source / "plate" / "validation" / "good" / "v.png", plate(70))
    import_data(source, tmp_path / "data")
    before, after = read_category(source), read_category(tmp_path / "data")
    for one, other in zip(before.samples, after.samples, strict=True):
        assert (one.split, one.defect, one.image.name) == (other.split, other.defect, other.image.name)
        assert one.image.read_bytes() == other.image.read_bytes()
        if one.mask:
            np.testing.assert_array_equal(read_mask(one.mask), read_mask(other.mask))


def test_what_lies_at_the_place_is_never_written_over(tmp_path):
    source = plant(tmp_path / "source")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    with pytest.raises(DataError, match="expected a new or an empty folder"):
        import_data(source, tmp_path / "data")
    (tmp_path / "data" / "mine.txt").unlink()
    import_data(source, tmp_path / "data")
    assert len(read_category(tmp_path / "data").train) == 12


def test_an_import_that_stops_leaves_nothing(tmp_path):
    source = plant(tmp_path / "source")

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_data(source, tmp_path / "data", progress=stop)
    assert {path.name for path in tmp_path.iterdir() if path.name != "cache"} == {"source"}


def test_a_folder_without_labels_or_layout_is_told_what_is_read(tmp_path):
    with pytest.raises(DataError, match="expected labels in"):
        read_labels(plant(tmp_path / "source"))
