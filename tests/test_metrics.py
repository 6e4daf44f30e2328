"""Image and pixel metrics against hand-drawn examples, scikit-learn and loops that follow the definitions."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from threecad.errors import MetricError
from threecad.metrics import PixelScores, image_scores, pixel, pixel_scores
from threecad.regions import label_regions

# The hand-drawn image: two regions, of three pixels and of one; the bright normal pixel outscores all but one defect
# pixel, and one normal pixel is tied with the single-pixel region.
MAP = np.array(
    [
        [9, 7, 1, 1],
        [5, 8, 1, 1],
        [1, 1, 1, 1],
        [1, 1, 3, 3],
    ],
    np.float32,
)
MASK = np.array(
    [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    ],
    bool,
)
# From the highest score down, with 4 defect and 12 normal pixels:
#   score  9    8     7     5     3     1
#   TP     1    1     2     3     4     4
#   FP     0    1     1     1     2    12
#   PRO   1/6  1/6   2/6   3/6    1     1


def everything(scores: PixelScores) -> list[float]:
    return [scores.p_auroc, scores.p_ap, scores.p_pro, scores.p_pro_per_image, scores.p_f1_max]


# Drawn by hand.


def test_auroc_of_the_hand_drawn_image() -> None:
    # Normal pixels below 9, 7, 5: 12, 11, 11; below 3: 10, and half of the tied one.
    assert pixel_scores([MAP], [MASK]).p_auroc == pytest.approx((12 + 11 + 11 + 10.5) / (4 * 12), abs=1e-15)


def test_average_precision_of_the_hand_drawn_image() -> None:
    assert pixel_scores([MAP], [MASK]).p_ap == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4, abs=1e-15)


def test_f1_max_of_the_hand_drawn_image() -> None:
    assert pixel_scores([MAP], [MASK]).p_f1_max == pytest.approx(max(2 / 5, 4 / 7, 6 / 8, 8 / 10), abs=1e-15)


def test_pro_of_the_hand_drawn_image() -> None:
    # Flat at 1/6 to FPR 1/12, up to 1/2, then a ramp to 1 at FPR 2/12, flat to 0.3.
    area = 1 / 6 / 12 + (1 / 2 + 1) / 2 / 12 + (0.3 - 2 / 12)
    scores = pixel_scores([MAP], [MASK])
    assert scores.p_pro == pytest.approx(area / 0.3, abs=1e-15)
    assert scores.n_regions == 2


def test_pro_is_interpolated_where_a_ramp_crosses_the_limit() -> None:
    # One defect pixel tied with six of twelve normal ones: PRO = 2 FPR up to 1/2.
    anomaly_map, mask = np.zeros((1, 13)), np.zeros((1, 13))
    anomaly_map[0, :7] = mask[0, 0] = 1
    assert pixel_scores([anomaly_map], [mask]).p_pro == pytest.approx(0.3, abs=1e-15)  # mean of 0 … 0.6


def test_pro_per_image_of_the_hand_drawn_image() -> None:
    # Thresholds 1 + 0.04 k, strictly above: overlap 1 with FPR 2/12 below 3, then 1/2, 1/3 and 1/6 with FPR 1/12 below
    # 5, 7 and 8, then 1/6 with FPR 0. All are kept and 2/12 becomes 1.
    # Points in order of FPR: (0, 1/6), (1/2, 1/6), (1/2, 1/2), (1, 1).
    scores = pixel_scores([MAP], [MASK])
    assert scores.p_pro_per_image == pytest.approx(1 / 6 / 2 + (1 / 2 + 1) / 2 / 2, abs=1e-15)
    assert scores.n_skipped_per_image == 0


def test_a_constant_map_is_worth_a_guess() -> None:
    scores = pixel_scores([np.full((4, 4), 0.7, np.float32)], [MASK])
    assert scores.p_auroc == 0.5
    assert scores.p_ap == 4 / 16
    assert scores.p_f1_max == pytest.approx(2 * 4 / (4 + 16))
    assert scores.p_pro == pytest.approx(0.15, abs=1e-15)
    assert math.isnan(scores.p_pro_per_image)
    assert scores.n_skipped_per_image == 1


def test_a_map_that_is_right_everywhere_is_worth_one() -> None:
    graded = np.linspace(0, 0.2, 16).reshape(4, 4)  # normal pixels that the 200 thresholds can part
    scores = pixel_scores([MASK + graded], [MASK])
    assert everything(scores) == pytest.approx([1.0] * 5, abs=1e-15)
    assert max(everything(scores)) <= 1


def test_a_curve_without_false_positives_is_skipped_and_counted() -> None:
    scores = pixel_scores([MASK.astype(float), MAP], [MASK, MASK])
    assert scores.n_skipped_per_image == 1
    assert scores.p_pro_per_image == pixel_scores([MAP], [MASK]).p_pro_per_image


def test_an_empty_mask_adds_normal_pixels_to_all_but_the_per_image_pro() -> None:
    alone, joined = pixel_scores([MAP], [MASK]), pixel_scores([MAP, np.full((4, 4), 10)], [MASK, np.zeros((4, 4))])
    assert joined.p_auroc == pytest.approx((12 + 11 + 11 + 10.5) / (4 * 28), abs=1e-15)
    assert joined.p_pro == 0  # 16 of 28 normal pixels above everything
    assert joined.p_pro_per_image == alone.p_pro_per_image
    assert joined.n_skipped_per_image == 0


def test_a_full_mask_adds_one_region_and_is_skipped_per_image() -> None:
    alone, joined = pixel_scores([MAP], [MASK]), pixel_scores([MAP, np.full((4, 4), 10)], [MASK, np.ones((4, 4))])
    assert joined.n_regions == 3
    assert joined.n_skipped_per_image == 1
    assert joined.p_pro == pytest.approx((2 * alone.p_pro + 1) / 3, abs=1e-15)
    assert joined.p_pro_per_image == alone.p_pro_per_image


def test_an_image_left_out_of_pro_counts_for_the_other_metrics() -> None:
    maps, masks = [MAP, MAP.T + 0.5], [MASK, np.zeros((4, 4), bool)]
    alone, joined = pixel_scores(maps[:1], masks[:1]), pixel_scores(maps, masks)
    left_out = pixel_scores(maps, masks, left_out_of_pro=[False, True])
    assert left_out.p_pro == alone.p_pro != joined.p_pro
    assert left_out.p_auroc == joined.p_auroc != alone.p_auroc
    assert left_out.p_ap == joined.p_ap
    assert left_out.p_f1_max == joined.p_f1_max


def test_image_metrics_of_a_hand_drawn_set() -> None:
    scores = image_scores([5, 4, 4, 2, 1], [1, 1, 0, 1, 0])
    assert scores.i_auroc == pytest.approx((2 + 1.5 + 1) / 6, abs=1e-15)
    assert scores.i_ap == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-15)
    assert scores.i_f1_max == pytest.approx(2 * 3 / (3 + 4), abs=1e-15)
    assert scores.fpr_at_95_tpr == 1 / 2


def test_nineteen_of_twenty_defects_are_95_per_cent() -> None:
    scores = [*range(20, 0, -1), 1.5]  # one good image, above the weakest defect only
    assert image_scores(scores, [1] * 20 + [0]).fpr_at_95_tpr == 0
    assert image_scores(scores[1:], [1] * 19 + [0]).fpr_at_95_tpr == 1


# Oracles.


def literal_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Pooled P-PRO at every distinct score, one threshold after the other."""
    normal, regions = maps[~masks], []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = label_regions(mask)
        regions += [anomaly_map[labels == label] for label in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((float(np.mean(normal >= threshold)), float(overlap)))
    area = 0.0
    for (left, low), (right, high) in pairwise(points):
        if right > 0.3:
            return (area + (0.3 - left) * (low + (low + (high - low) * (0.3 - left) / (right - left))) / 2) / 0.3
        area += (right - left) * (low + high) / 2
    raise AssertionError("the curve ends at FPR 1")


def literal_pro_per_image(maps: np.ndarray, masks: np.ndarray) -> tuple[float, int]:
    """The paper's P-PRO, threshold by threshold, and the number of images skipped."""
    areas, n_skipped = [], 0
    for anomaly_map, mask in zip(maps.astype(np.float64), masks, strict=True):
        if not mask.any():
            continue
        labels, count = label_regions(mask)
        low, high, points = anomaly_map.min(), anomaly_map.max(), []
        for k in range(200 if not mask.all() else 0):
            positive = anomaly_map > low + k * (high - low) / 200
            overlap = np.mean([positive[labels == label].mean() for label in range(1, count + 1)])
            points.append((positive[~mask].mean(), overlap))
        kept = sorted(point for point in points if point[0] < 0.3)
        if len(kept) < 2 or kept[-1][0] == 0:
            n_skipped += 1
            continue
        fpr, overlap = np.array(kept).T
        fpr /= fpr.max()
        areas.append(float(np.sum(np.diff(fpr) * (overlap[1:] + overlap[:-1]) / 2)))
    return float(np.mean(areas)), n_skipped


def random_set(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps (7, 16, 12) float32 with masks: four of defects, one full, two empty."""
    rng = np.random.default_rng(seed)
    masks = rng.random((7, 16, 12)) < np.array([0.02, 0.1, 0.05, 0.2, 1, 0, 0])[:, None, None]
    maps = rng.standard_normal(masks.shape) + masks
    if kind == "heavily tied":
        maps = np.round(maps)
    elif kind == "narrow band":
        maps = 0.9999 + 0.0001 / (1 + np.exp(-maps))
    return maps.astype(np.float32), masks


KINDS = ["continuous", "heavily tied", "narrow band"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_pooled_and_per_image_pro_equal_the_literal_loops(kind: str, seed: int) -> None:
    maps, masks = random_set(kind, seed)
    scores = pixel_scores(maps, masks)
    assert scores.p_pro == pytest.approx(literal_pro(maps, masks), abs=1e-12)
    area, n_skipped = literal_pro_per_image(maps, masks)
    assert scores.p_pro_per_image == pytest.approx(area, abs=1e-12)
    assert scores.n_skipped_per_image == n_skipped >= 1


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_auroc_ap_and_f1_equal_scikit_learn_on_pixels_and_images(kind: str) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    maps, masks = random_set(kind)
    labels, values = masks.ravel(), maps.ravel()
    precision, recall, _ = oracle.precision_recall_curve(labels, values)
    f1_max = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    fpr, tpr, _ = oracle.roc_curve(labels, values, drop_intermediate=False)
    pixels, images = pixel_scores(maps, masks), image_scores(values, labels)
    for auroc, ap, f1 in [
        (pixels.p_auroc, pixels.p_ap, pixels.p_f1_max),
        (images.i_auroc, images.i_ap, images.i_f1_max),
    ]:
        assert auroc == pytest.approx(oracle.roc_auc_score(labels, values), abs=1e-12)
        assert ap == pytest.approx(oracle.average_precision_score(labels, values), abs=1e-12)
        assert f1 == pytest.approx(f1_max, abs=1e-12)
    assert images.fpr_at_95_tpr == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_a_monotone_change_of_the_scores_leaves_the_pooled_metrics_alone() -> None:
    maps, masks = random_set("continuous")
    raw, stretched = pixel_scores(maps, masks), pixel_scores(np.exp(9 * maps.astype(np.float64)), masks)
    assert stretched.p_pro == raw.p_pro
    assert stretched.p_auroc == raw.p_auroc
    assert stretched.p_ap == raw.p_ap
    assert stretched.p_pro_per_image != raw.p_pro_per_image  # its thresholds follow the values


# What must not matter.


@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_nor_batches_show_in_the_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = random_set(kind)
    expected = pixel_scores(maps, masks, threads=1)
    for batch_pixels, block_edges in ((1, 7), (500, 1000)):
        monkeypatch.setattr(pixel, "BATCH_PIXELS", batch_pixels)
        monkeypatch.setattr(pixel, "BLOCK_EDGES", block_edges)
        for threads in (1, 2, 5):
            assert pixel_scores(maps, masks, threads=threads) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_images_and_pixels_does_not_matter(kind: str) -> None:
    maps, masks = random_set(kind)
    expected = everything(pixel_scores(maps, masks))
    assert everything(pixel_scores(maps[::-1], masks[::-1])) == pytest.approx(expected, abs=1e-14)
    assert everything(pixel_scores(maps[:, ::-1, ::-1], masks[:, ::-1, ::-1])) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_masks_of_0_and_255_are_those_of_false_and_true(dtype: type) -> None:
    maps, masks = random_set("continuous")
    expected = pixel_scores(maps, masks)
    assert pixel_scores(maps, masks.astype(dtype) * 255) == expected
    assert pixel_scores(list(maps), list(masks.astype(dtype))) == expected


def test_images_may_differ_in_size() -> None:
    maps, masks = random_set("continuous")
    halves = [*maps[:1, :7], *maps[:1, 7:], *maps[1:]], [*masks[:1, :7], *masks[:1, 7:], *masks[1:]]
    assert pixel_scores(*halves).p_ap == pytest.approx(pixel_scores(maps, masks).p_ap, abs=1e-14)


def test_double_maps_are_not_rounded_to_single() -> None:
    maps = np.array([[[1.0, 1.0 + 1e-12]]])
    assert pixel_scores(maps, [np.array([[0, 1]])]).p_auroc == 1
    good = np.zeros((1, 2), np.float32)
    assert pixel_scores([good, maps[0]], [good, np.array([[0, 1]])]).p_auroc == 1


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_maps_on_disk_give_the_same_and_keep_their_values(mode: str, tmp_path: Path) -> None:
    maps, masks = random_set("continuous")
    expected = pixel_scores(maps, masks)
    for name, array in (("maps", maps), ("masks", masks)):
        np.save(tmp_path / f"{name}.npy", array)
    stored_maps, stored_masks = (np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in ("maps", "masks"))
    if mode != "r":
        stored_maps[...] = -maps
        stored_maps[...] = maps
    assert pixel_scores(stored_maps, stored_masks) == expected
    assert np.array_equal(stored_maps, maps)
    assert np.array_equal(stored_masks, masks)


def test_changes_that_a_copy_on_write_map_holds_are_scored_and_kept(tmp_path: Path) -> None:
    maps, masks = random_set("continuous")
    np.save(tmp_path / "maps.npy", np.zeros_like(maps))
    private = np.load(tmp_path / "maps.npy", mmap_mode="c")
    private[...] = maps
    assert pixel_scores(private, masks) == pixel_scores(maps, masks)
    assert np.array_equal(private, maps)


class Reader:
    """Yields its maps through one buffer, as a reader of files may."""

    def __init__(self, maps: np.ndarray) -> None:
        self.maps = maps

    def __iter__(self) -> Iterator[np.ndarray]:
        buffer = np.empty_like(self.maps[0])
        for anomaly_map in self.maps:
            buffer[...] = anomaly_map
            yield buffer


def test_an_object_that_starts_anew_may_reuse_its_memory() -> None:
    maps, masks = random_set("continuous")
    assert pixel_scores(Reader(maps), Reader(masks)) == pixel_scores(maps, masks)


# Errors.


def test_a_one_shot_generator_is_refused_with_the_reason() -> None:
    with pytest.raises(MetricError, match=r"maps that can be gone through twice, found a one-shot generator"):
        pixel_scores((anomaly_map for anomaly_map in [MAP]), [MASK])
    with pytest.raises(MetricError, match=r"masks that can be gone through twice, found a one-shot map"):
        pixel_scores([MAP], map(np.asarray, [MASK]))


def test_maps_that_are_gone_the_second_time_are_an_error() -> None:
    class Hidden:
        def __init__(self) -> None:
            self.once = iter([MAP, MAP])

        def __iter__(self) -> Iterator[np.ndarray]:
            yield from self.once

    with pytest.raises(MetricError, match="found 32 pixels, then 0"):
        pixel_scores(Hidden(), [MASK, MASK])


def test_no_defect_pixel_is_an_error_saying_so() -> None:
    with pytest.raises(MetricError, match="need defect pixels, found none in 2 masks"):
        pixel_scores([MAP, MAP], np.zeros((2, 4, 4), bool))


def test_no_normal_pixel_is_an_error_saying_so() -> None:
    with pytest.raises(MetricError, match="need normal pixels, found none"):
        pixel_scores([MAP], np.ones((1, 4, 4), bool))


@pytest.mark.parametrize(("n_maps", "n_masks", "found"), [(2, 1, "only 1 masks"), (1, 2, "only 1 maps")])
def test_unequal_numbers_of_maps_and_masks_are_an_error(n_maps: int, n_masks: int, found: str) -> None:
    with pytest.raises(MetricError, match=found):
        pixel_scores([MAP] * n_maps, [MASK] * n_masks)


def test_a_mask_of_another_size_is_an_error_naming_both() -> None:
    with pytest.raises(MetricError, match=r"found \(4, 4\) and \(4, 3\) at image 1"):
        pixel_scores([MAP, MAP], [MASK, MASK[:, :3]])


def test_a_missing_mask_is_an_error_naming_the_image() -> None:
    with pytest.raises(MetricError, match="found no array at image 1"):
        pixel_scores([MAP, MAP], [MASK, None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mask", [MASK, np.zeros((4, 4), bool)])
def test_a_value_that_is_not_finite_is_an_error_naming_the_image(value: float, mask: np.ndarray) -> None:
    broken = MAP.copy()
    broken[2, 2] = value
    with pytest.raises(MetricError, match=r"finite maps, found .* at image 1"):
        pixel_scores([MAP, broken], [MASK, mask])


def test_flags_must_fit_the_images_and_their_masks() -> None:
    with pytest.raises(MetricError, match="expected 2 flags"):
        pixel_scores([MAP, MAP], [MASK, MASK], left_out_of_pro=[True])
    with pytest.raises(MetricError, match="found 4 defect pixels at image 1"):
        pixel_scores([MAP, MAP], [MASK, MASK], left_out_of_pro=[False, True])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2, 3], [1, 1, 1], "found 0 good and 3 defective"),
        ([1, 2], [0, 0], "found 2 good and 0 defective"),
        ([], [], "found 0 good and 0 defective"),
        ([1, np.nan], [0, 1], "found nan at position 1"),
        ([np.inf, 1], [0, 1], "found inf at position 0"),
        ([1, 2, 3], [0, 1], r"found \(3,\) and \(2,\)"),
        ([1, 2], [0, 255], "labels 0 .* and 1"),
        (["a", "b"], [0, 1], "scores that are numbers"),
    ],
)
def test_scores_without_a_metric_are_errors_that_say_why(scores: list, labels: list, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        image_scores(scores, labels)


def test_metrics_load_without_torch() -> None:
    program = "import sys, threecad.metrics; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("change", [lambda tensor: tensor.requires_grad_(), lambda tensor: tensor.bfloat16()])
def test_tensors_with_a_gradient_or_in_bfloat16_are_numbers_too(change) -> None:
    import torch

    scores, maps = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.rand(2, 4, 4).round(decimals=1)
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2] = True
    assert image_scores(change(scores), [0, 0, 1, 1]).i_auroc == 1
    expected = pixel_scores(change(maps.clone()).detach().float().numpy(), masks)
    assert pixel_scores(change(maps.clone()), masks) == expected
