"""The whole work at a station in a real browser, with a real model on drawn parts; every page is held against axe."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from browser import CHROMIUM, Browser
from stations import serving
from threecad.demo.line import SIDE, fit_line
from threecad.demo.parts import render_part
from threecad.records import GOOD, Split
from threecad.station.line import Limits, Line
from threecad.station.models import Models
from threecad.station.safety import Guard
from threecad.station.serving import open_line
from threecad.station.store import store_faults

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on this machine"),
]

SCREENS = [(width, height, scheme) for width, height in ((1280, 800), (820, 1180)) for scheme in ("light", "dark")]


def drawn(index: int, kind: str = GOOD, light: float = 1.0) -> bytes:
    """The picture of a part that no fit has seen, under a lamp of this strength."""
    pixels = render_part(1, Split.TEST, kind, index, SIDE).image * light
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Work(NamedTuple):
    """A station at work, and somebody in front of it."""

    line: Line
    address: str
    browser: Browser

    def post(self, content: bytes, part: str) -> None:
        urllib.request.urlopen(f"{self.address}/v1/inspect?part={part}", content).close()

    def press_button(self, words: str, opens: bool = False) -> None:
        """Find a button by its words, as a person does, and press Enter on it.

        Args:
            opens: wait for the page that it opens.
        """
        button = f"[...document.querySelectorAll('button')].find((one) => one.textContent.includes('{words}'))"
        self.browser.wait(f"!!{button}")
        self.browser.value(f"{button}.focus()")
        self.browser.value("window.isOld = true")
        self.browser.press("Enter")
        if opens:
            self.browser.wait("!window.isOld && document.readyState === 'complete'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the demo's line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("THREECAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return fit_line(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def work(run: Path, tmp_path: Path) -> Iterator[Work]:
    line = open_line([run], tmp_path / "store", Limits(deadline_s=60), Models(run.parent), print)
    with serving(line, Guard(), Models(run.parent)) as address:
        browser = Browser(tmp_path / "browser", address)
        yield Work(line, address, browser)
        browser.close()
    line.close()
    line.store.close()


def test_inspect_review_calibrate_notice_the_lamp_change_the_model_and_audit(work: Work) -> None:
    line, address, browser, post = work.line, work.address, work.browser, work.post
    line.recipes["aluminium_cover"] = line.recipes["aluminium_cover"].with_budgets(review_at=0.5, reject_at=0.02)
    for index in range(8):
        post(drawn(index), f"P{index}")
    post(drawn(90, "dent"), "dented")
    set_aside = line.store.read("SELECT count(*) FROM parts WHERE verdict != 'OK'")[0][0]
    assert set_aside > 1 and line.store.read("SELECT verdict FROM parts WHERE part = 'dented'") == [("NG",)]

    # The newest first: the dented part is a defect of a type, the others are good; one answer is taken back.
    browser.go(address)
    browser.wait("document.querySelector('#list [aria-current]')?.textContent.includes('dented')")
    browser.press("t")
    browser.type("dent")
    browser.press("Enter")
    for left in range(set_aside - 1, 0, -1):
        browser.wait(
            f"document.querySelectorAll('#list li').length === {left} && !document.getElementById('desk').hidden"
        )
        browser.press("g")
    browser.wait("!document.getElementById('nothing').hidden")
    browser.press("u")
    browser.wait("document.querySelectorAll('#list li').length === 1")
    browser.press("g")
    browser.wait("!document.getElementById('nothing').hidden")

    # What was confirmed counts after a look at the thresholds of before and after.
    recipe = line.recipes["aluminium_cover"]
    browser.go(f"{address}/health")
    work.press_button("Let confirmed good parts count")
    browser.wait("!document.querySelector('.preview').hidden")
    now = browser.value("document.querySelector('[data-when=before][data-what=review]').textContent")
    assert float(now) == pytest.approx(recipe.thresholds["review"], rel=1e-3)
    assert len(line.recipes["aluminium_cover"].good_scores) == 64
    work.press_button("Let them count", opens=True)
    browser.wait(f"document.body.textContent.includes('{64 + set_aside - 1} good parts')")

    # Thresholds are changed back, with a record.
    for name, share in (("review_at", "0.05"), ("reject_at", "0.01")):
        browser.value(f"document.getElementsByName('{name}')[0].value = '{share}'")
    work.press_button("Change", opens=True)

    # The lamp fades; the alarm says what to do, and goes when the engineer has mended it.
    for index in range(52):
        post(drawn(100 + index, light=1.0 if index < 20 else 0.9), f"Q{index}")
    browser.go(f"{address}/health")
    browser.wait("document.getElementById('alarms').textContent.includes('Drift of the brightness')")
    assert "Check the lamp" in browser.value("document.getElementById('alarms').textContent")
    for width, height, scheme in SCREENS:
        browser.screen(width, height, scheme)
        assert browser.violations() == []
    while browser.value("document.getElementById('alarms').textContent.includes('Drift')"):
        work.press_button("It is mended", opens=True)

    # Another model, and the history of both.
    work.press_button("Inspect with it", opens=True)
    post(drawn(300), "after")
    browser.go(f"{address}/records")
    text = browser.value("document.querySelector('main').textContent")
    assert "calibration" in text and "engineer" in text
    assert [row.content.get("chosen") for row in line.store.notes("model")] == [None, "aluminium_cover"]
    assert store_faults(line.store.folder)[2] == []


def test_every_page_is_readable_and_reachable_by_keyboard_light_and_dark_on_a_desk_and_a_tablet(work: Work) -> None:
    browser = work.browser
    for index in range(3):
        work.post(drawn(index), f"P{index}")
    work.post(drawn(90, "dent"), "dented")
    for page in ("/", "/health", "/records", "/login"):
        browser.go(f"{work.address}{page}")
        if page == "/":
            browser.wait("!document.getElementById('desk').hidden")
        for width, height, scheme in SCREENS:
            browser.screen(width, height, scheme)
            assert browser.violations() == [], (page, width, scheme)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), (page, width)
        assert unreached(browser) == [], page


def unreached(browser: Browser) -> list[str]:
    """What can be operated on this page and is not reached by Tab, or not seen to be."""
    operable = "[...document.querySelectorAll('a[href], button, input, select, summary')]"
    browser.value(f"window.left = new Set({operable}.filter((one) => one.checkVisibility())); window.unseen = []")
    browser.value("document.activeElement?.blur()")
    for _ in range(browser.value("left.size") + 2):
        browser.press("Tab")
        browser.value(
            "(({ activeElement: now, body }) => { left.delete(now);"
            " if (now !== body && getComputedStyle(now).outlineStyle === 'none') unseen.push(now); })(document)"
        )
    return list(browser.value("[...left, ...unseen].map((one) => one.outerHTML.slice(0, 100))"))
