"""Parts that lie a few pixels off are laid upon the golden part, and maps come back to where the part lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import threecad
from conftest import plant, save
from threecad.data.loading import load_frames, load_offsets
from threecad.data.readers import read_category
from threecad.errors import DataError, RunError
from threecad.evaluation import evaluate_run
from threecad.framing import Framing, Region, Tiles
from threecad.registration import MOST_REACH, GoldenPart, register
from threecad.runs import RunFolder

HEIGHT, WIDTH, ROOM = 64, 96, 12
METHOD = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": [64, 96], "features": 12}


def drawn() -> np.ndarray:
    """The part and what lies around it, (88, 120) float32: smooth blobs, as one casting has them."""
    rough = np.random.default_rng(0).normal(0, 1, (HEIGHT + 2 * ROOM, WIDTH + 2 * ROOM))
    smooth = ndimage.gaussian_filter(rough, 2)
    return (128 + 35 * smooth / smooth.std()).astype(np.float32)


def picture(down: float = 0.0, right: float = 0.0, seed: int = 0, noise: float = 3.0) -> np.ndarray:
    """Pixels (64, 96, 3) uint8 of the part, lying so many pixels further down and to the right."""
    moved = ndimage.shift(drawn(), (down, right), order=1)[ROOM:-ROOM, ROOM:-ROOM]
    grey = moved + np.random.default_rng(seed).normal(0, noise, moved.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def places(count: int) -> np.ndarray:
    """Pixels down and right, (count, 2), at which parts lie."""
    return np.random.default_rng(1).uniform(-4, 4, (count, 2))


def golden() -> GoldenPart:
    return GoldenPart(picture(noise=0)[..., 0], (0.1, 0.1))


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A data root of parts that lie up to 4 px off: 16 good ones, 4 good and 4 with a dark spot to test on."""
    folder = tmp_path / "data" / "casting"
    for number, (down, right) in enumerate(places(24)):
        part = picture(down, right, seed=number)
        if number < 20:
            save(folder / ("train" if number < 16 else "test") / "good" / f"{number:03d}.png", part)
            continue
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[28:36, 10 * (number - 18) : 10 * (number - 18) + 8] = 255
        part[mask > 0] = 0
        save(folder / "test" / "spot" / f"{number:03d}.png", part)
        save(folder / "ground_truth" / "spot" / f"{number:03d}.png", mask)
    return tmp_path / "data"


def fit(data: Path, run: Path, registration: bool | str = True, **more: object) -> Path:
    chosen = {"holdout": 0.25, "registration": registration} | more
    threecad.fit("padim", data, run, settings={"method": METHOD, "data": chosen})
    return run


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (3.0, -4.0), (-2.5, 1.25), (0.5, 5.0)])
def test_a_part_is_found_to_a_fraction_of_a_pixel_whatever_its_lighting(down: float, right: float) -> None:
    part = picture(down, right, seed=5)
    shaded = (part * np.linspace(0.5, 1.0, WIDTH)[None, :, None]).astype(np.uint8)
    for pixels in (part, shaded):
        found = golden().offset(pixels)
        assert found[0] * HEIGHT == pytest.approx(down, abs=0.3)
        assert found[1] * WIDTH == pytest.approx(right, abs=0.3)


def test_a_part_farther_off_than_the_reach_is_not_looked_for_there_and_known_to_be() -> None:
    near = GoldenPart(golden().picture, (0.02, 0.02))
    down, right, is_beyond = near.offset(picture(6.0, -6.0))
    assert abs(down) <= 0.02 and abs(right) <= 0.02 and is_beyond
    assert not near.offset(picture(1.0, -1.0)).is_beyond
    assert not golden().offset(picture(6.0, -6.0)).is_beyond


def test_parts_laid_upon_the_golden_one_lie_alike_and_nothing_of_them_is_left_out() -> None:
    part, upon = picture(3.0, -4.0, noise=0), golden()
    laid = upon.lay(part, upon.offset(part))
    straight = upon.lay(picture(noise=0), upon.offset(picture(noise=0)))
    assert laid.shape[:2] == upon.widened((HEIGHT, WIDTH)) == (77, 115)
    inner = np.s_[12:-12, 15:-15]
    assert np.abs(laid[inner].astype(int) - straight[inner]).mean() < 6
    for corner in ((0, 0), (HEIGHT - 3, 0), (0, WIDTH - 3), (HEIGHT - 3, WIDTH - 3)):
        marked = np.zeros_like(part)
        marked[corner[0] : corner[0] + 3, corner[1] : corner[1] + 3] = 255
        assert upon.lay(marked, upon.offset(part)).max() > 200


@pytest.mark.parametrize("tiles", [None, Tiles(grid=(1, 2)), Tiles(grid=(2, 2), whole=False)])
def test_a_map_comes_back_to_where_the_picture_has_it(tiles: Tiles | None) -> None:
    """A network whose map is the picture's red channel gives the red channel back, wherever the part lies."""
    framing = Framing((128, 192), tiles=tiles, golden=golden())
    part = ndimage.gaussian_filter(picture(3.0, -4.0), (2, 2, 0))
    frames = framing.frames(part)
    maps = [frame[..., 0].astype(np.float32) for frame in frames.pixels]
    back = framing.join(maps, frames.size, offset=frames.offset)
    assert back.shape == (HEIGHT, WIDTH)
    assert np.abs(back - part[..., 0])[2:-2, 2:-2].mean() < 2
    small = framing.join(maps, frames.size, target=(32, 48), offset=frames.offset)
    assert np.abs(small - part[::2, ::2, 0])[2:-2, 2:-2].mean() < 6


def test_the_region_of_interest_moves_with_the_part() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:44, 30:66] = True
    framing = Framing(golden().widened((HEIGHT, WIDTH)), Region(mask), golden=golden())
    frames, inside = framing.frames(picture(4.0, -5.0)), framing.inside((HEIGHT, WIDTH))
    assert inside is not None
    assert ((frames.pixels[0] == 128).all(axis=2) | inside[0]).all()  # all else is painted
    core = ndimage.binary_erosion(inside[0], iterations=4).astype(np.float32)
    rows, columns = np.nonzero(framing.join([core], frames.size, offset=frames.offset) > 0.5)
    assert (rows.mean(), columns.mean()) == pytest.approx((31.5 + 4, 47.5 - 5), abs=1)


def test_where_parts_lie_is_told_from_what_they_differ_by_otherwise() -> None:
    off = np.stack([picture(down, right, seed=number) for number, (down, right) in enumerate(places(12))])
    found = register(off)
    assert found.is_worthwhile and found.share > 0.8
    assert all(
        3.5 / side < reach <= MOST_REACH for side, reach in zip((HEIGHT, WIDTH), found.golden.reach, strict=True)
    )
    alike = np.stack([picture(seed=number) for number in range(12)])
    assert not register(alike).is_worthwhile
    blank = np.full((12, HEIGHT, WIDTH, 3), 120, np.uint8)
    assert register(blank).share == 0  # nothing that could be taken away


def test_a_fit_registers_parts_that_lie_apart_and_says_so_and_leaves_others_where_they_are(
    moved: Path, tmp_path: Path
) -> None:
    run = RunFolder(fit(moved, tmp_path / "run", "auto"))
    record = run.read_record()
    assert run.golden_file.is_file() and record.reach is not None
    assert record.settings["data"]["registration"] is True
    assert "parts are laid upon a golden part" in record.choices[0]
    still = RunFolder(fit(plant(tmp_path / "plates"), tmp_path / "still", "auto"))
    assert not still.golden_file.exists() and still.read_record().reach is None
    assert "parts are compared as they lie" in still.read_record().choices[0]


def test_a_defect_is_shown_where_the_picture_has_it(moved: Path, tmp_path: Path) -> None:
    predictor = threecad.load(fit(moved, tmp_path / "run"))
    part = picture(3.5, -3.5, seed=70)
    part[28:38, 40:50] = 0
    rows, columns = np.unravel_index(predictor(part).anomaly_map.argmax(), (HEIGHT, WIDTH))
    assert (rows, columns) == pytest.approx((33, 45), abs=8)


def test_a_part_that_lies_where_no_good_one_did_is_set_aside_and_never_passes(moved: Path, tmp_path: Path) -> None:
    run = fit(moved, tmp_path / "run")
    off, in_place = picture(2.0, 30.0, seed=71), picture(2.0, 3.0, seed=71)
    for number, part in enumerate((off, in_place)):
        save(tmp_path / "parts" / f"{number}.png", part)
    reason = "the part lies farther off than good parts do"
    found = threecad.load(run)([off, in_place])
    assert (found[0].verdict, found[0].reason) == ("REVIEW", reason) and found[1].reason != reason
    rows = threecad.predict(run, [tmp_path / "parts" / f"{number}.png" for number in range(2)])
    assert [row.reason == reason for row in rows] == [True, False]


def test_an_evaluation_from_packs_says_what_a_look_at_the_files_says(moved: Path, tmp_path: Path) -> None:
    run = fit(moved, tmp_path / "run")
    predictor, seen = threecad.load(run), []
    evaluate_run(run, moved, on_image=lambda one: seen.append((one.sample.image, one.found, one.pixels)))
    assert len(seen) == 8
    for file, found, shown in seen:
        result = predictor(file)
        assert found.score == pytest.approx(result.score, rel=1e-5)
        np.testing.assert_allclose(found.at((HEIGHT, WIDTH)), result.anomaly_map, rtol=1e-4, atol=1e-4)
        assert np.abs(shown.astype(int) - pixels_of(file)).mean() < 12


def pixels_of(file: Path) -> np.ndarray:
    from threecad.images import read_image

    return read_image(file)


def test_packed_frames_and_offsets_are_those_of_the_files(moved: Path) -> None:
    framing = Framing((HEIGHT, WIDTH), golden=golden())
    samples = read_category(moved, "casting").train
    packed, offsets = load_frames(samples, framing), load_offsets(samples, framing)
    for sample, frames, offset in zip(samples, packed, offsets, strict=True):
        expected = framing.frames(pixels_of(sample.image))
        assert np.array_equal(frames, expected.pixels) and offset == expected.offset


def test_too_few_good_parts_are_refused_by_name_and_leave_nothing(moved: Path, tmp_path: Path) -> None:
    for file in sorted((moved / "casting" / "train" / "good").iterdir())[6:]:
        file.unlink()
    with pytest.raises(DataError, match=r"'data.registration': expected one category with at least 8 good images"):
        fit(moved, tmp_path / "run", holdout=0.0)
    assert not (tmp_path / "run").exists()
    record = RunFolder(fit(moved, tmp_path / "auto", "auto", holdout=0.0)).read_record()
    assert record.settings["data"]["registration"] is False


def test_a_run_without_its_golden_part_is_refused(moved: Path, tmp_path: Path) -> None:
    run = fit(moved, tmp_path / "run")
    (run / "golden.png").unlink()
    with pytest.raises(RunError, match=r"golden part is missing or damaged: .*golden\.png"):
        threecad.load(run)
