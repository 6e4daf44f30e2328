"""Every published layout in miniature, made here as its authors publish it: recognised by itself, read whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import plant, plate, save, scratch
from threecad.data.audit import audit
from threecad.data.findings import Severity
from threecad.data.loading import load_masks
from threecad.data.readers import fingerprint, list_categories, read_categories, read_category, reader_of, scan_category
from threecad.errors import DataError
from threecad.records import GOOD, Split


def counts(root: Path, name: str | None = None) -> tuple[int, int, dict[str, int]]:
    """Training images, validation images, and test images by defect."""
    category = read_category(root, name)
    kinds = {sample.defect for sample in category.test}
    by_kind = {kind: sum(sample.defect == kind for sample in category.test) for kind in sorted(kinds)}
    return len(category.train), len(category.validation), by_kind


def marked(root: Path, name: str | None = None) -> list[str]:
    """Names of the masks, by image."""
    return [sample.mask.name for sample in read_category(root, name).test if sample.mask]


def refusal(root: Path, name: str) -> str:
    """The one line with which a category is refused."""
    with pytest.raises(DataError) as refused:
        read_category(root, name)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# --- trees that only name folders otherwise --------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("scratch", "dent"), ("huashang", "aoxian")], ids=["English", "pinyin"])
def test_both_releases_of_3cad_give_the_same_counts(tmp_path, names):
    root = tmp_path / "Iron_Stator"
    for number in range(3):
        save(root / "train" / "good" / f"{number}.png", plate(number))
        save(root / "test" / "good" / f"{number}.png", plate(10 + number))
        for kind in names:
            save(root / "test" / kind / f"{number}.png", plate(20 + number))
            save(root / "ground_truth" / kind / f"{number}.png", scratch(number))
    train, validation, test = counts(tmp_path)
    assert (train, validation, sorted(test.values())) == (3, 0, [3, 3, 3])
    assert len(read_category(tmp_path).defects) == 2
    assert reader_of(tmp_path).title.startswith("3CAD")


def test_mpdd_is_a_tree_whose_masks_are_called_mask(tmp_path):
    for number in range(2):
        save(tmp_path / "metal_plate" / "train" / "good" / f"{number:03}.png", plate(number))
        save(tmp_path / "metal_plate" / "test" / "good" / f"{number:03}.png", plate(9 + number))
        save(tmp_path / "metal_plate" / "test" / "total_rust" / f"{number:03}.png", plate(20 + number))
        save(tmp_path / "metal_plate" / "ground_truth" / "total_rust" / f"{number:03}_mask.png", scratch(number))
    assert counts(tmp_path) == (2, 0, {"good": 2, "total_rust": 2})
    assert marked(tmp_path) == ["000_mask.png", "001_mask.png"]


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    for name, suffix in (("01", ".bmp"), ("02", ".png")):
        for number in range(2):
            save(tmp_path / name / "train" / "ok" / f"{number:04}{suffix}", plate(number))
            save(tmp_path / name / "test" / "ok" / f"{number:04}{suffix}", plate(10 + number))
            save(tmp_path / name / "test" / "ko" / f"{number:04}{suffix}", plate(20 + number))
            save(tmp_path / name / "ground_truth" / "ko" / f"{number:04}.png", scratch(number))
    return tmp_path


def test_btad_pairs_bmp_with_png_by_stem_and_calls_ok_good(btad):
    assert reader_of(btad).title == "BTAD" and list_categories(btad) == ["01", "02"]
    for root, name in ((btad, "01"), (btad, "02"), (btad / "01", None)):
        assert counts(root, name) == (2, 0, {"good": 2, "ko": 2})
        assert marked(root, name) == ["0000.png", "0001.png"]
    assert not any(finding.severity is Severity.ERROR for finding in audit(btad))


def test_btad_s_test_images_alone_are_found(btad):
    for folder in (btad / "01" / "train" / "ok", btad / "02" / "train" / "ok"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.parent.rmdir()
    assert list_categories(btad) == ["01", "02"]
    assert counts(btad, "01") == (0, 0, {"good": 2, "ko": 2})


def test_test_images_of_a_plain_tree_alone_are_not_taken_for_btad_s(tmp_path):
    root = plant(tmp_path / "data")
    shutil.rmtree(root / "plate" / "train")
    assert reader_of(root).title.startswith("3CAD")
    assert counts(root) == (0, 0, {"good": 4, "scratch": 4})


def test_mvtec_ad_2_keeps_its_validation_images_aside_and_its_masks_beside_the_public_test(tmp_path):
    can = tmp_path / "can"
    for number in range(3):
        save(can / "train" / "good" / f"{number:03}_regular.png", plate(number))
        save(can / "validation" / "good" / f"{number + 3:03}_regular.png", plate(5 + number))
        save(can / "test_public" / "good" / f"{number:03}_regular.png", plate(10 + number))
        save(can / "test_public" / "bad" / f"{number:03}_overexposed.png", plate(20 + number))
        save(can / "test_public" / "ground_truth" / "bad" / f"{number:03}_overexposed_mask.png", scratch(number))
        save(can / "test_private" / f"{number:03}.png", plate(30 + number))
    for root in (tmp_path, can):
        assert reader_of(root).title == "MVTec AD 2"
        assert counts(root) == (3, 3, {"bad": 3, "good": 3})
        assert marked(root) == [f"{number:03}_overexposed_mask.png" for number in range(3)]
    assert {sample.split for sample in read_category(can).validation} == {Split.VALIDATION}
    assert len(read_category(can).samples) == 12


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    for number in range(2):
        save(tmp_path / "juice" / "train" / "good" / f"{number:03}.png", plate(number))
        save(tmp_path / "juice" / "validation" / "good" / f"{number:03}.png", plate(5 + number))
        for index, kind in enumerate((GOOD, "logical_anomalies", "structural_anomalies")):
            save(tmp_path / "juice" / "test" / kind / f"{number:03}.png", plate(40 + 10 * index + number))
        save(tmp_path / "juice" / "ground_truth" / "structural_anomalies" / f"{number:03}" / "000.png", scratch(number))
    masks = tmp_path / "juice" / "ground_truth" / "logical_anomalies"
    for number, start in ((0, 0), (1, 10)):
        for index, level in ((0, 236), (1, 255)):
            mask = np.zeros((48, 64), np.uint8)
            mask[start + 20 * index : start + 20 * index + 4, :8] = level
            save(masks / f"{number:03}" / f"{index:03}.png", mask)
    return tmp_path


def test_mvtec_loco_joins_the_several_masks_of_an_image(loco):
    assert reader_of(loco).title == "MVTec LOCO AD"
    assert counts(loco) == (2, 2, {"good": 2, "logical_anomalies": 2, "structural_anomalies": 2})
    logical = [sample for sample in read_category(loco).test if sample.defect == "logical_anomalies"]
    assert [len(sample.masks) for sample in logical] == [2, 2]
    masks = load_masks(logical, (48, 64))
    assert masks.sum(axis=(1, 2)).tolist() == [64, 64] and masks.max() == 1
    assert not any(finding.severity is Severity.ERROR for finding in audit(loco))


def test_every_mask_of_an_image_counts_in_the_fingerprint(loco):
    before = fingerprint(read_category(loco).samples, lambda path: path.read_bytes().hex())
    save(loco / "juice" / "ground_truth" / "logical_anomalies" / "001" / "001.png", scratch(2))
    assert fingerprint(read_category(loco).samples, lambda path: path.read_bytes().hex()) != before


def test_a_folder_of_masks_without_an_image_and_an_image_without_masks_are_named(loco):
    masks = loco / "juice" / "ground_truth" / "logical_anomalies"
    (masks / "001").rename(masks / "777")
    _, problems = scan_category(loco, "juice")
    assert {(problem.path.name, problem.what.split(",")[0]) for problem in problems} == {
        ("777", "expected an image of this name in test/logical_anomalies"),
        ("001.png", "expected a mask ground_truth/logical_anomalies/001.png"),
    }


# --- VisA ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    lines = ["object,split,label,image,mask"]
    for number in range(4):
        image = Path("candle", "Data", "Images", "Normal", f"{number:04}.JPG")
        save(tmp_path / image, plate(number))
        lines.append(f"candle,{'train' if number < 3 else 'test'},normal,{image.as_posix()},")
    for number in range(2):
        image = Path("candle", "Data", "Images", "Anomaly", f"{number:03}.JPG")
        mask = Path("candle", "Data", "Masks", "Anomaly", f"{number:03}.png")
        save(tmp_path / image, plate(30 + number))
        save(tmp_path / mask, (scratch(number) > 0).astype(np.uint8) * (number + 1))
        lines.append(f"candle,test,anomaly,{image.as_posix()},{mask.as_posix()}")
    lines.append("capsules,train,normal,capsules/Data/Images/Normal/000.JPG,")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_visa_is_read_by_its_list_and_masks_that_look_black_are_defects(visa):
    assert reader_of(visa).title == "VisA"
    assert list_categories(visa) == ["candle"]
    assert counts(visa) == (3, 0, {"anomaly": 2, "good": 1})
    defective = [sample for sample in read_category(visa).test if sample.is_defect]
    assert load_masks(defective, (48, 64)).sum(axis=(1, 2)).tolist() == [int((scratch(n) > 0).sum()) for n in range(2)]
    assert not any(finding.severity is Severity.ERROR for finding in audit(visa))


def test_objects_of_a_list_that_are_not_there_are_named(visa):
    found = [finding.what for finding in audit(visa) if finding.path == visa]
    assert found == [
        "expected 12 categories as in VisA, found 1; not here: capsules, cashew, chewinggum, fryum, macaroni1, "
        "macaroni2, pcb1, pcb2 and 3 more"
    ]


def test_the_converted_visa_is_a_tree(tmp_path):
    candle = tmp_path / "1cls" / "candle"
    for number in range(2):
        save(candle / "train" / "good" / f"{number:04}.JPG", plate(number))
        save(candle / "test" / "good" / f"{number + 9:04}.JPG", plate(10 + number))
        save(candle / "test" / "bad" / f"{number:03}.JPG", plate(20 + number))
        save(candle / "ground_truth" / "bad" / f"{number:03}.png", scratch(number) // 255 * 3)
    assert counts(tmp_path / "1cls") == (2, 0, {"bad": 2, "good": 2})
    assert marked(tmp_path / "1cls") == ["000.png", "001.png"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split,label,image,mask", "object,split,label,image", "expected a column 'mask', found object, split"),
        ("candle,train,normal,candle/Data/Images/Normal/0001.JPG,", "candle,train", "line 3: expected 5 cells"),
        ("candle/Data/Images/Normal/0001.JPG", "/data/candle/0001.JPG", "line 3: expected a path relative to"),
        ("candle/Data/Images/Normal/0001.JPG", "../candle/0001.JPG", "found '../candle/0001.JPG'"),
        ("candle/Data/Images/Normal/0001.JPG", "candle/Data/Images/Normal/9.JPG", "line 3: expected a file at"),
        ("Masks/Anomaly/001.png", "Masks/Anomaly/9.png", "line 7: expected a file at"),
        (
            "candle,train,normal",
            "candle,learn,normal",
            "line 2: expected 'train' or 'test' as the split, found 'learn'",
        ),
        ("candle,test,normal", "candle,test,odd", "line 5: expected 'normal' or 'anomaly' as the label, found 'odd'"),
        ("candle,test,anomaly,candle", "candle,train,anomaly,candle", "expected good images for training"),
    ],
)
def test_a_line_of_visa_s_list_that_does_not_fit_is_named(visa, old, new, message):
    rewrite(visa / "split_csv" / "1cls.csv", old, new)
    assert message in refusal(visa, "candle")


def test_visa_without_its_list_is_told_what_is_missing(visa):
    (visa / "split_csv" / "1cls.csv").unlink()
    assert "1cls.csv cannot be read" in refusal(visa, "candle")


# --- Real-IAD --------------------------------------------------------------------------------------------------------


def realiad(root: Path, images: str, lists: str) -> Path:
    """Two good parts and a defective one, five views each, the defect seen in three."""
    content: dict = {
        "meta": {"normal_class": "OK", "prefix": "../data/explicit_full/audiojack/"},
        "train": [],
        "test": [],
    }
    folder = root / images / "audiojack"
    for part, split, kind in ((1, "train", "OK"), (2, "test", "OK"), (3, "test", "PIT")):
        for view in range(1, 6):
            place = "OK" if kind == "OK" else f"NG/{kind}"
            name = f"{place}/S{part:04}/audiojack_{part:04}_{kind}_C{view}_2023"
            seen = kind != "OK" and view <= 3
            save(folder / f"{name}.jpg", plate(10 * part + view))
            if seen:
                save(folder / f"{name}.png", scratch(view))
            item = {"category": "audiojack", "anomaly_class": kind if seen else "OK", "image_path": f"{name}.jpg"}
            content[split].append({**item, "mask_path": f"{name}.png" if seen else None})
    (root / lists).mkdir(parents=True, exist_ok=True)
    (root / lists / "audiojack.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("images", "lists"),
    [("realiad_1024", "realiad_jsons/realiad_jsons"), ("realiad_256", "realiad_jsons"), (".", ".")],
)
def test_real_iad_is_read_by_its_lists_and_views_name_their_part(tmp_path, images, lists):
    realiad(tmp_path, images, lists)
    assert reader_of(tmp_path).title == "Real-IAD"
    assert counts(tmp_path) == (5, 0, {"PIT": 3, "good": 7})
    category = read_category(tmp_path)
    parts = {sample.part for sample in category.test}
    assert parts == {"OK/S0002", "NG/PIT/S0003"}
    assert all(sample.mask and sample.mask.suffix == ".png" for sample in category.test if sample.is_defect)
    findings = [finding.what for finding in audit(tmp_path) if finding.severity is not Severity.NOTE]
    assert findings == ["expected at least 10 good images to learn how much good parts differ, found 5"]


def test_a_part_of_real_iad_on_both_sides_is_found_without_a_rule(tmp_path):
    file = realiad(tmp_path, ".", ".") / "audiojack.json"
    content = json.loads(file.read_text())
    content["train"].append(content["test"].pop(0))
    file.write_text(json.dumps(content))
    assert any("part 'OK/S0002' on one side" in finding.what for finding in audit(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_path": "/data/audiojack/1.jpg"}, "train 1: expected a path relative to"),
        ({"image_path": "C:\\data\\1.jpg"}, "train 1: expected a path relative to"),
        ({"image_path": "OK/S0001/9.jpg"}, "train 1: expected a file at"),
        ({"image_path": None}, "train 1: expected a path relative to"),
        ({"anomaly_class": 3}, "train 1: expected an object with anomaly_class"),
        ({"anomaly_class": "PIT"}, "expected good images for training"),
    ],
)
def test_an_item_of_real_iad_s_list_that_does_not_fit_is_named(tmp_path, change, message):
    file = realiad(tmp_path, ".", ".") / "audiojack.json"
    content = json.loads(file.read_text())
    content["train"][0].update(change)
    file.write_text(json.dumps(content))
    assert message in refusal(tmp_path, "audiojack")


def test_a_list_of_real_iad_that_is_cut_off_is_named(tmp_path):
    file = realiad(tmp_path, ".", ".") / "audiojack.json"
    file.write_text(file.read_text()[:300])
    assert "audiojack.json cannot be read as JSON" in refusal(tmp_path, "audiojack")


# --- all of them -----------------------------------------------------------------------------------------------------


def test_a_plain_tree_is_not_taken_for_another_layout(tmp_path):
    root = plant(tmp_path / "data")
    save(root / "plate" / "validation" / "good" / "x.png", plate(60))
    assert reader_of(root).title.startswith("3CAD")
    assert counts(root) == (12, 1, {"good": 4, "scratch": 4})
    assert [category.name for category in read_categories(root)] == ["plate"]
    assert reader_of(root / "plate" / "train" / "good").title == "a plain folder of good images"


def test_a_mask_of_another_size_in_any_layout_is_named(loco):
    Image.new("L", (10, 10)).save(loco / "juice" / "ground_truth" / "logical_anomalies" / "001" / "001.png")
    logical = [sample for sample in read_category(loco).test if sample.defect == "logical_anomalies"]
    with pytest.raises(DataError, match=r"001\.png: expected the size of its image, 48×64, found 10×10"):
        load_masks(logical, (48, 64))


# --- what a fit makes of them ----------------------------------------------------------------------------------------


TINY = {"method": {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}}


def test_a_fit_refuses_test_images_alone_before_it_makes_anything(tmp_path):
    from threecad.fitting import fit

    root = plant(tmp_path / "data")
    shutil.rmtree(root / "plate" / "train")
    with pytest.raises(DataError, match="expected good images in train/good, found none"):
        fit("padim", root, tmp_path / "run", settings=TINY)
    assert not (tmp_path / "run").exists()


def test_a_fit_keeps_a_set_s_own_validation_images_aside_and_learns_from_all_others(tmp_path):
    from threecad.fitting import fit
    from threecad.runs import RunFolder

    root = plant(tmp_path / "data")
    for number in range(3):
        save(root / "plate" / "validation" / "good" / f"{number}.png", plate(70 + number))
    fit("padim", root, tmp_path / "run", settings=TINY)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["scoring"], len(record["holdout"])) == ("hold-out", 3)
    assert len(RunFolder(tmp_path / "run").read_verdicts().good.of("plate")) == 3
