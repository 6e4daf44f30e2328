"""Regions that good parts do not have, images that cannot show a part, and the plot of scores."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from good_parts import of_scores, parts
from threecad.verdicts import (
    AREAS_PX,
    GoodLooks,
    GoodPart,
    GoodScores,
    Verdicts,
    VerdictSettings,
    area_peaks,
    look,
    plausible,
    regions,
    scores_plot,
)


def test_regions_have_box_area_and_peak_and_the_highest_comes_first() -> None:
    anomaly_map = np.zeros((6, 8), np.float32)
    anomaly_map[1:3, 2:5] = 2.0
    anomaly_map[5, 7] = 9.0
    assert [region.as_json() for region in regions(anomaly_map, 1.0)] == [
        {"box": [7, 5, 1, 1], "area_px": 1, "peak": 9.0},
        {"box": [2, 1, 3, 2], "area_px": 6, "peak": 2.0},
    ]
    assert [region.area_px for region in regions(anomaly_map, 1.0, least_area_px=2)] == [6]
    assert regions(anomaly_map, 9.0) == []


def test_the_peak_of_a_region_is_not_that_of_another_in_its_box() -> None:
    anomaly_map = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 5]], np.float32)
    assert [(region.area_px, region.peak) for region in regions(anomaly_map, 0.5)] == [(1, 5.0), (5, 1.0)]


def test_above_an_areas_peak_there_is_no_region_of_that_area_and_just_below_there_is() -> None:
    anomaly_map = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    for area, peak in zip(AREAS_PX, area_peaks(anomaly_map), strict=True):
        assert not regions(anomaly_map, peak, area)
        if area <= anomaly_map.size:
            assert regions(anomaly_map, float(np.nextafter(np.float32(peak), np.float32(-np.inf))), area)
    assert area_peaks(anomaly_map)[0] == anomaly_map.max()
    assert area_peaks(np.ones((3, 3), np.float32)) == (1.0,) * len(AREAS_PX)


@pytest.mark.parametrize("least_area_px", [1, 4, 10])
def test_no_more_good_parts_have_a_region_than_their_budget(least_area_px: int) -> None:
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(250, 24, 24)).astype(np.float32)
    good = tuple(GoodPart(part=str(index), score=0.0, peaks=area_peaks(one)) for index, one in enumerate(maps[:100]))
    verdicts = Verdicts(GoodScores(parts={"plate": good}), VerdictSettings(region_at=0.1, least_area_px=least_area_px))
    found = verdicts.limits().region
    with_regions = [bool(verdicts.regions(one)) for one in maps]
    assert sum(with_regions[:100]) <= found.above
    assert np.mean(with_regions[100:]) < 0.1 + 4 * math.sqrt(0.1 * 0.9 / 150)


def picture(brightness: float = 120, size: tuple[int, int] = (60, 80), seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(brightness, 20, (*size, 1))
    return np.repeat(noise.clip(0, 255).astype(np.uint8), 3, axis=2)


GOOD_LOOKS = GoodLooks.of(look(picture(115 + seed, seed=seed)) for seed in range(10))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((60, 80, 3), np.uint8), "blank"),
        (np.full((60, 80, 3), 118, np.uint8), "blank"),
        (np.full((60, 80, 3), 255, np.uint8), "blank"),
        (np.where(picture() > 140, 120, 0).astype(np.uint8), "black"),
        (np.where(picture() > 100, 255, 60).astype(np.uint8), "saturated"),
        (picture(60), "darker than every good one"),
        (picture(190), "brighter than every good one"),
        (picture(size=(80, 60)), "80×60 px, good ones are 60×80"),
    ],
)
def test_an_image_that_cannot_show_a_part_says_why(pixels: np.ndarray, said: str) -> None:
    assert said in (plausible(pixels, GOOD_LOOKS) or "")


def test_other_good_images_and_those_with_defects_are_plausible() -> None:
    scratched, stained = picture(seed=20), picture(seed=21)
    scratched[30] = 255
    stained[:30, :40] = 0  # a quarter of the image
    for pixels in (*(picture(110 + seed, seed=seed) for seed in range(11, 20)), scratched, stained):
        assert plausible(pixels, GOOD_LOOKS) is None


def test_good_parts_on_black_and_even_ones_stay_plausible() -> None:
    on_black = np.zeros((60, 80, 3), np.uint8)
    on_black[20:40, 30:50] = picture(size=(20, 20))
    even = np.full((60, 80, 3), 90, np.uint8)
    for pixels in (on_black, even):
        good = GoodLooks.of([look(pixels), look(pixels)])
        assert plausible(pixels, good) is None


def test_sizes_may_vary_as_much_as_those_of_good_images() -> None:
    good = GoodLooks.of([look(picture(size=(60, 80))), look(picture(size=(70, 80)))])
    assert plausible(picture(size=(75, 80)), good) is None
    assert plausible(picture(size=(90, 80)), good) == "the image is 90×80 px, good ones are 60×80 to 70×80"


def test_further_good_images_widen_what_is_plausible() -> None:
    good = GoodScores().joined("plate", parts(np.arange(9.0)), {}, GOOD_LOOKS)
    dim = picture(60)
    assert Verdicts(good).doubt(dim) == "the image is darker than every good one"
    wider = good.joined("plate", [], {}, GoodLooks.of([look(picture(70))]))
    assert Verdicts(wider).doubt(dim) is None
    assert Verdicts(GoodScores()).doubt(dim) is None  # nothing is known


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e6])
def test_the_plot_has_a_dot_a_part_and_both_promises(scale: float) -> None:
    verdicts = of_scores(scale * np.random.default_rng(0).chisquare(4, 214))
    drawn = scores_plot(verdicts.good.scores(), verdicts.limits(), [scale * 40.0, math.nan], "Plates & <nuts>")
    root = ElementTree.fromstring(drawn)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 214 + 1 + 2  # and two in the legend
    said = " ".join(text.text or "" for text in root.findall("{http://www.w3.org/2000/svg}text"))
    assert "Plates & <nuts>" in said and "214 good parts" in said
    assert "at most 1.4 % of good parts" in said and "at most 4.9 % of good parts" in said


def test_a_plot_of_parts_that_all_score_alike_stands() -> None:
    verdicts = of_scores(np.ones(20))
    ElementTree.fromstring(scores_plot(verdicts.good.scores(), verdicts.limits()))
