"""The watch on what passes: seldom a false alarm while parts are alike, soon a true one when they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from threecad.station.drift import ALPHA, Martingale, Watches
from threecad.station.optics import Optics, optics


def stakes(values: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> list[float]:
    game, path = Martingale(sorted(before.tolist())), []
    for value in values:
        game.bet(game.rank(float(value), float(rng.uniform(1e-9, 1))))
        path.append(game.log10)
    return path


def test_ranks_of_like_parts_are_uniform_even_where_scores_are_tied() -> None:
    rng = np.random.default_rng(0)
    game = Martingale(rng.integers(0, 4, 30).astype(float).tolist())
    game.ordered.sort()
    ranks = np.array([game.rank(float(rng.integers(0, 4)), float(rng.uniform(1e-9, 1))) for _ in range(4000)])
    counts = np.histogram(ranks, 10, (0, 1))[0]
    assert counts.sum() == 4000 and abs(counts - 400).max() < 5 * np.sqrt(400)


def test_a_game_against_like_parts_is_fair_and_seldom_reaches_the_alarm() -> None:
    rng = np.random.default_rng(1)
    false = sum(max(stakes(rng.normal(size=150), rng.normal(size=40), rng)) >= np.log10(1 / ALPHA) for _ in range(300))
    assert false <= 12  # at most 3 are expected; 13 or more come with a chance below 0.00002


def test_a_shift_either_way_is_found_soon() -> None:
    rng = np.random.default_rng(2)
    for shift in (-1.5, 1.5):
        values = np.concatenate([rng.normal(size=300), rng.normal(shift, size=60)])
        path = stakes(values, rng.normal(size=60), rng)
        assert max(path[300:]) > np.log10(3 / ALPHA) > max(path[:300])


def test_a_watch_begins_anew_after_so_many_parts_whether_or_not_the_station_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
    pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")
    from stations import Station, picture

    monkeypatch.setattr("threecad.station.drift.RENEWED_AFTER", 6)
    station = Station(tmp_path / "store")
    passed = 0
    while passed < 14:
        passed += station.post(picture(passed)).json()["verdict"] == "OK"
    going_on = station.client.app.state.watches.update("plate")
    restarted = Watches(station.line).update("plate")
    assert going_on.count == restarted.count == 2 and going_on.points == restarted.points
    station.close()


def test_parts_that_lie_elsewhere_or_are_blurred_or_darker_change_the_number_that_is_watched_for_it() -> None:
    seen, right, lower = numbers(held(20, 18)), numbers(held(22, 18)), numbers(held(20, 20))
    assert right.across - seen.across > 1 > 5 * abs(right.down - seen.down)
    assert lower.down - seen.down > 1 > 5 * abs(lower.across - seen.across)
    darker = numbers((held(20, 18) * 0.9).astype(np.uint8))
    assert darker.brightness < 0.91 * seen.brightness and abs(darker.across - seen.across) < 0.5
    blurred = numbers(ndimage.uniform_filter(held(20, 18), (3, 3, 1)))
    assert blurred.sharpness < 0.8 * seen.sharpness
    assert numbers(np.full((48, 64, 3), 90, np.uint8))[2:] == (50.0, 50.0)


def held(left: int, top: int) -> np.ndarray:
    """A bright part, 20 px wide and 12 high, in front of a dark wall with a little noise."""
    pixels = np.random.default_rng(0).integers(38, 42, (48, 64, 3), np.uint8, endpoint=True)
    pixels[top : top + 12, left : left + 20] += 120
    return pixels


def numbers(pixels: np.ndarray) -> Optics:
    return optics(pixels, pixels.mean(axis=2, dtype=np.float32))
