"""The one evaluation loop: what it counts, what it leaves out, and that its metrics are those of the maps."""

from __future__ import annotations

import copy
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threecad.data.loading import load_images, load_masks
from threecad.data.readers import Category, read_category
from threecad.devices import resolve_precision
from threecad.errors import DataError, MetricError, SettingsError
from threecad.evaluation import IMAGE_METRICS, METRICS, PIXEL_METRICS, Seen, evaluate, with_mean
from threecad.images import resize_map
from threecad.inference import load
from threecad.metrics import image_scores, pixel_scores
from threecad.predictor import Predictor, predict_all
from threecad.runs import RunFolder, RunRecord
from threecad.verdicts import good_share

SIZE = (48, 80)


@pytest.fixture(scope="module")
def run(fitted: Path) -> tuple[Predictor, RunRecord]:
    return load(fitted), RunFolder(fitted).read_record()


def at(record: RunRecord, size: tuple[int, int]) -> RunRecord:
    """The record with another evaluation size."""
    other = copy.deepcopy(record)
    other.settings["evaluation"]["size"] = list(size)
    return other


@pytest.fixture
def plate(tree: Path) -> Category:
    return read_category(tree, "plate")


def test_scores_are_those_of_the_maps_resized_to_the_evaluation_size(
    run: tuple[Predictor, RunRecord], plate: Category
) -> None:
    predictor, record = run
    scores = evaluate(predictor, at(record, SIZE), plate)
    found = list(predict_all(predictor.network, load_images(plate.test, (64, 64))))
    labels = [sample.is_defect for sample in plate.test]
    by_image = image_scores([one.score for one in found], labels)
    by_pixel = pixel_scores([resize_map(one.anomaly_map, SIZE) for one in found], load_masks(plate.test, SIZE))
    for name in METRICS:
        expected = getattr(by_pixel if name in PIXEL_METRICS else by_image, name)
        assert scores[name] == pytest.approx(expected, abs=1e-12), name
    assert scores["i_auroc"] > 0.9
    assert (scores["n_good"], scores["n_defect"], scores["n_vanished"]) == (4, 4, 0)


def test_scores_say_what_they_depend_on(run: tuple[Predictor, RunRecord], plate: Category) -> None:
    predictor, record = run
    scores = evaluate(predictor, at(record, SIZE), plate)
    assert scores["method"] == "padim" and scores["category"] == "plate"
    assert scores["image_size"] == [64, 64] and scores["evaluation_size"] == list(SIZE)
    assert scores["selection"] == "last" and scores["settings"]["evaluation"]["size"] == list(SIZE)
    before = scores["data_fingerprint"]
    first = plate.test[0].image
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(first)
    assert evaluate(predictor, at(record, SIZE), plate)["data_fingerprint"] != before


def test_every_image_is_looked_at_once_in_order(run: tuple[Predictor, RunRecord], plate: Category) -> None:
    predictor, record = run
    seen: list[Seen] = []
    progress: list[tuple[int, int]] = []
    evaluate(
        predictor,
        at(record, SIZE),
        plate,
        on_image=seen.append,
        progress=lambda done, count: progress.append((done, count)),
    )
    assert [one.sample for one in seen] == list(plate.test)
    assert progress == [(number, 8) for number in range(1, 9)]
    assert seen[0].pixels.shape == (64, 64, 3) and seen[0].mask.shape == SIZE
    assert seen[0].found.anomaly_map.shape == (64, 64)


def test_a_defect_that_vanishes_keeps_its_label_leaves_pro_and_is_counted(
    run: tuple[Predictor, RunRecord], plate: Category
) -> None:
    predictor, record = run
    small = (12, 16)
    whole = evaluate(predictor, at(record, small), plate)
    tiny = next(sample for sample in plate.test if sample.is_defect)
    dot = np.zeros((48, 64), np.uint8)
    dot[0, 0] = 255  # between the points that nearest neighbour takes
    Image.fromarray(dot).save(tiny.mask)
    scores = evaluate(predictor, at(record, small), plate)
    assert not load_masks([tiny], small).any()
    assert (whole["n_vanished"], scores["n_vanished"], scores["n_defect"]) == (0, 1, 4)
    assert scores["i_auroc"] == whole["i_auroc"]
    others = [sample for sample in plate.test if sample != tiny]
    found = predict_all(predictor.network, load_images(others, (64, 64)))
    maps = [resize_map(one.anomaly_map, small) for one in found]
    assert scores["p_pro"] == pytest.approx(pixel_scores(maps, load_masks(others, small)).p_pro, abs=1e-12)


def test_a_category_without_masks_has_image_metrics_only(run: tuple[Predictor, RunRecord], tree: Path) -> None:
    predictor, record = run
    with_masks = evaluate(predictor, at(record, SIZE), read_category(tree, "plate"))
    shutil.rmtree(tree / "plate" / "ground_truth")
    scores = evaluate(predictor, at(record, SIZE), read_category(tree, "plate"))
    assert [name for name in METRICS if scores[name] is None] == [name for name in METRICS if name in PIXEL_METRICS]
    assert scores["i_auroc"] == with_masks["i_auroc"] and scores["n_vanished"] == 0


def test_good_test_images_alone_are_refused(run: tuple[Predictor, RunRecord], tree: Path) -> None:
    predictor, record = run
    for kind in ("test", "ground_truth"):
        shutil.rmtree(tree / "plate" / kind / "scratch")
    with pytest.raises(MetricError, match="'plate': expected good and defective test images, found 4 good and 0 defec"):
        evaluate(predictor, at(record, SIZE), read_category(tree, "plate"))


def test_defective_test_images_alone_have_pixel_metrics_if_they_have_masks(
    run: tuple[Predictor, RunRecord], tree: Path
) -> None:
    predictor, record = run
    shutil.rmtree(tree / "plate" / "test" / "good")
    scores = evaluate(predictor, at(record, SIZE), read_category(tree, "plate"))
    assert [scores[name] for name in IMAGE_METRICS] == [None] * 4
    assert all(0 < scores[name] <= 1 for name in PIXEL_METRICS)
    shutil.rmtree(tree / "plate" / "ground_truth")
    with pytest.raises(MetricError, match="found 0 good and 4 defective"):
        evaluate(predictor, at(record, SIZE), read_category(tree, "plate"))


def test_no_room_for_maps_names_the_variable_to_set(run: tuple[Predictor, RunRecord], plate: Category) -> None:
    predictor, record = run
    evaluate(predictor, at(record, (512, 512)), plate)  # packs are in the cache now
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(DataError, match=r"no room for 0\.01 GB of maps in .*\nset TMPDIR to a folder with room"):
            evaluate(predictor, at(record, (512, 512)), plate)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_category_is_flat_and_several_have_their_plain_mean() -> None:
    def scores(category: str, value: float | None) -> dict[str, object]:
        return dict.fromkeys(METRICS, value) | {"category": category}

    assert with_mean([scores("a", 0.5)]) == scores("a", 0.5)
    both = with_mean([scores("a", 0.5), scores("b", 0.9)])
    assert both["mean"] == pytest.approx(dict.fromkeys(METRICS, 0.7))
    assert both["categories"] == {"a": scores("a", 0.5), "b": scores("b", 0.9)}
    assert with_mean([scores("a", 0.5), scores("b", None)])["mean"] == dict.fromkeys(METRICS)


def test_batches_of_any_size_give_the_same_maps(run: tuple[Predictor, RunRecord], plate: Category) -> None:
    predictor, _ = run
    images = load_images(plate.test, (64, 64))
    one, three = (list(predict_all(predictor.network, images, size)) for size in (1, 3))
    assert len(one) == len(three) == 8
    for a, b in zip(one, three, strict=True):
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, rtol=1e-4, atol=1e-4)
        assert a.score == pytest.approx(b.score, rel=1e-4)


def test_good_share_is_the_share_of_good_parts_that_look_as_odd() -> None:
    good = [1.0, 2.0, 3.0, 4.0]
    assert [good_share(score, good) for score in (5, 4, 2.5, 0)] == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert good_share(1, []) == 1


@pytest.mark.parametrize("native", [True, False])
def test_precision_is_what_was_asked_for_or_what_the_machine_has(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cpu = torch.device("cpu")
    monkeypatch.setattr("threecad.devices.has_native_bf16", lambda device: native)
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("auto", cpu) == ("bf16" if native else "float32")
    if native:
        assert resolve_precision("bf16", cpu) == "bf16"
    else:
        with pytest.raises(SettingsError, match="bf16 has no native support on this cpu; use float32"):
            resolve_precision("bf16", cpu)
