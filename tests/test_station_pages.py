"""The pages of a station: served whole from this machine, closed to strangers, and true to the records."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Station, picture
from threecad.station.pages import STATIC
from threecad.station.safety import Guard, Role
from threecad.station.serving import _answer

PAGES = ("/", "/health", "/records", "/login")


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    one = Station(tmp_path / "store", guard=Guard())
    yield one
    one.close()


def test_pages_need_nothing_from_elsewhere_and_no_script_or_style_of_their_own(station: Station) -> None:
    station.post(picture(1), lot="L1")
    station.post(picture(2, defect=True), lot="<script>")
    texts = {path: station.client.get(path).text for path in (*PAGES, *(f"/static/{name}" for name in STATIC))}
    for path, text in texts.items():
        assert not re.search(r"(src|href|url|import|fetch)\W{1,3}(https?:)?//", text), path
        if path in PAGES:
            assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", text), path
            assert 'lang="en"' in text and "<title>" in text
            linked = re.findall(r'(?:src|href)="(/[^"]*)"', text)
            assert all(station.client.get(link).status_code == 200 for link in linked), path
    assert "&lt;script&gt;" in texts["/"]


def test_every_field_and_picture_has_a_name_for_those_who_do_not_see_it(station: Station) -> None:
    station.post(picture(2, defect=True))
    for path in PAGES:
        text = station.client.get(path).text
        assert all("alt=" in image for image in re.findall(r"<img[^>]*>", text)), path
        outside = re.sub(r"<label.*?</label>", "", text, flags=re.S)
        assert not re.findall(r"<(?:input|select)[^>]*>", outside), path


def test_colours_of_words_stand_out_from_their_ground() -> None:
    css = (Path(sys.modules["threecad.station"].__file__ or "").parent / "static" / "station.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.S)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        pairs = [(ink, ground) for ink in ("ink", "soft") for ground in ("paper", "card")]
        pairs += [("ink", "alarm"), ("ok-ink", "ok"), ("review-ink", "review"), ("ng-ink", "ng")]
        for ink, ground in pairs:
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours as WCAG defines it."""
    levels = []
    for colour in (one, other):
        channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ (0.2126, 0.7152, 0.0722)))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


def test_a_stranger_sees_the_door_and_a_token_opens_it(tmp_path: Path) -> None:
    tokens = {Role.OPERATOR: "operator-token-1", Role.ENGINEER: "engineer-token-1"}
    station = Station(tmp_path / "store", guard=Guard(tokens))
    client = station.client
    for path in ("/", "/health", "/records"):
        assert client.get(path, follow_redirects=False).headers["location"] == "/login"
    assert client.post("/login", data={"token": "wrong"}).status_code == 401
    entered = client.post("/login", data={"token": tokens[Role.OPERATOR]}, follow_redirects=False)
    cookie = entered.headers["set-cookie"].lower()
    assert entered.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert "operator" in client.get("/health").text and "budgets" not in client.get("/health").text
    client.post("/login", data={"token": tokens[Role.ENGINEER]})
    assert "budgets" in client.get("/health").text
    station.close()


def test_health_shows_shares_beside_the_promise_and_an_alarm_that_says_what_to_do(station: Station) -> None:
    for seed in range(40):
        station.post(picture(seed))
    calm = station.client.get("/health").text
    assert "No alarm." in calm and "Of good parts like these 60" in calm
    for seed in range(40, 80):  # a lamp that has become a little brighter
        station.post(picture(seed, light=1.03))
    shown = station.client.get("/health").text
    assert "Drift of the brightness" in shown and "Check the lamp" in shown
    [noted] = [row for row in station.store.notes("alarm") if row.content["what"] == "brightness"]
    assert noted.content["part"] > 40
    station.client.post("/v1/recipes/plate/watch")
    assert "Drift of the" not in station.client.get("/health").text


def test_records_show_how_thresholds_have_changed(station: Station) -> None:
    station.client.post("/v1/recipes/plate/thresholds", json={"reject_at": 0.2, "review_at": 0.4})
    text = station.client.get("/records").text
    assert "engineer" in text and re.search(r"0\.\d+ → 0\.\d+", text)


def test_a_station_that_is_told_to_stop_before_it_answers_stops(station: Station) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _answer(station.client.app, listening, lambda address: signal.raise_signal(signal.SIGTERM))


@pytest.mark.slow
def test_the_demo_shows_a_living_line_and_stops_when_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "threecad", "serve", "--demo", "--port", "0", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as station:
        assert station.stdout is not None
        address = station.stdout.readline().strip()
        deadline = time.monotonic() + 120
        while b"C00002" not in urllib.request.urlopen(f"{address}v1/parts").read():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        if browser := shutil.which("chromium"):
            asked = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
            page = [browser, *asked, f"--user-data-dir={tmp_path / 'browser'}", f"{address}?"]
            shown = subprocess.run(page, capture_output=True, text=True, timeout=120, check=True).stdout
            assert re.search(r"\d+ parts?|No part waits", shown) and 'class="verdict' in shown
        station.terminate()
        assert station.wait(60) == 0
    audit = [sys.executable, "-m", "threecad", "audit", "verify", str(tmp_path / "store")]
    assert subprocess.run(audit, check=False).returncode == 0
