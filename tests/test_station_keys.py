"""A person reviews parts in a real browser with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from browser import CHROMIUM, Browser
from stations import Station, answering, picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on this machine"),
]


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    """A station in whose queue three parts wait: 2, 3 and 4."""
    one = Station(tmp_path / "store")
    one.post(picture(1), part="passed")
    for seed in (2, 3, 4):
        one.post(picture(seed, defect=True), part=f"P{seed}")
    yield one
    one.close()


@pytest.fixture
def browser(station: Station, tmp_path: Path) -> Iterator[Browser]:
    with answering(station) as address:
        one = Browser(tmp_path / "browser", address)
        one.wait("document.querySelectorAll('#list li').length === 3")
        yield one
        one.close()


SHOWN = "document.querySelector('#list [aria-current]')?.textContent"


def answers(station: Station) -> list[tuple[int | None, str | None, str]]:
    return [(row.part, row.content["answer"], row.content["defect"]) for row in station.store.notes("answer")]


def test_good_defect_with_its_type_skip_and_undo_by_keys(station: Station, browser: Browser) -> None:
    browser.wait(f"{SHOWN} === 'NGP4'")  # the newest first
    browser.press("g")
    browser.wait(f"{SHOWN} === 'NGP3'")
    browser.press("t")
    for letter in "dents":
        browser.press(letter)
    browser.press("Enter")
    browser.wait(f"{SHOWN} === 'NGP2'")
    browser.press("s")
    browser.wait("!document.getElementById('nothing').hidden")
    browser.press("u")
    browser.wait(f"{SHOWN} === 'NGP2'")
    assert answers(station) == [(4, "good", ""), (3, "defect", "dents"), (2, "skip", ""), (2, None, "")]


def test_arrows_map_and_zoom_by_keys_change_no_answer(station: Station, browser: Browser) -> None:
    browser.press("ArrowRight")
    browser.wait(f"{SHOWN} === 'NGP3'")
    browser.press("ArrowLeft")
    browser.wait(f"{SHOWN} === 'NGP4'")
    browser.wait("document.querySelectorAll('#regions rect').length > 0")
    browser.press("m")
    browser.wait("document.getElementById('map').style.opacity === '0'")
    browser.press("+")
    moved = "[...document.querySelectorAll('.moved')].map((one) => one.style.transform)"
    browser.wait(f"{moved}.every((one) => one.includes('scale(1.4)'))")  # both pictures in step
    assert answers(station) == []


def test_pictures_are_shown_under_the_policy_that_allows_nothing_from_elsewhere(browser: Browser) -> None:
    for name in ("image", "map", "golden"):
        browser.wait(f"document.getElementById('{name}').naturalWidth === 64")
