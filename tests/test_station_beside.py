"""What a station does beside answering: a folder that is watched, and records that are posted."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Station, picture
from threecad.errors import SettingsError
from threecad.station.watching import Watched
from threecad.station.webhook import SECRET, Webhook


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    one = Station(tmp_path / "store")
    yield one
    one.close()


@pytest.fixture
def arrivals(tmp_path: Path) -> Path:
    (tmp_path / "arrivals").mkdir()
    return tmp_path / "arrivals"


def lines(station: Station) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (station.folder / "watched.jsonl").read_text().splitlines()]


def test_what_arrives_is_inspected_once_with_a_line_each(station: Station, arrivals: Path) -> None:
    (arrivals / "P1.png").write_bytes(picture(1))
    (arrivals / "P2.png").write_bytes(picture(2, defect=True))
    (arrivals / "notes.txt").write_text("no picture")
    (arrivals / "broken.png").write_bytes(b"no picture either")
    watched = Watched(station.line, arrivals)
    for _ in range(4):
        watched.step()
    said = {one["file"]: one for one in lines(station)}
    assert len(lines(station)) == 3 and (said["P1.png"]["verdict"], said["P2.png"]["verdict"]) == ("OK", "NG")
    assert "cannot be read" in said["broken.png"]["error"] and said["P1.png"]["partId"] == "P1"


def test_a_picture_that_is_still_being_written_waits(station: Station, arrivals: Path) -> None:
    watched, content = Watched(station.line, arrivals), picture(1)
    for end in (100, 400, len(content)):
        (arrivals / "P1.png").write_bytes(content[:end])
        watched.step()
    assert not (station.folder / "watched.jsonl").exists()
    watched.step()
    assert [one["verdict"] for one in lines(station)] == ["OK"]


def test_after_a_kill_nothing_is_inspected_twice_and_no_line_is_missing(station: Station, arrivals: Path) -> None:
    for seed in range(3):
        (arrivals / f"P{seed}.png").write_bytes(picture(seed))
    watched = Watched(station.line, arrivals)
    watched.step()
    watched.step()
    file = station.folder / "watched.jsonl"
    before = lines(station)
    file.write_text(file.read_text()[:-30])  # killed while it wrote the last line
    again = Watched(station.line, arrivals)
    again.step()
    again.step()
    assert lines(station) == before
    assert station.store.read("SELECT count(*) FROM parts") == [(3,)]


class Receiver(BaseHTTPRequestHandler):
    """Refuses the first two requests, and takes the others."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((body, dict(self.headers)))  # type: ignore[attr-defined]
        self.send_response(503 if len(self.server.asked) <= 2 else 204)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_records_are_posted_in_order_signed_and_again_until_taken(
    station: Station, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "a secret of the test")
    url = f"http://127.0.0.1:{receiver.server_port}/records"
    for seed in range(3):
        station.post(picture(seed), part=f"P{seed}")
    webhook = Webhook(station.line, url)
    waits = [webhook.step() for _ in range(3)]
    assert waits[0] < waits[1] and waits[2] < waits[1]  # longer after each refusal, until it is taken
    taken = receiver.asked[2:]
    assert [json.loads(body)["partId"] for body, _ in taken] == ["P0", "P1", "P2"]
    for body, headers in taken:
        signed = hmac.new(b"a secret of the test", body, hashlib.sha256).hexdigest()
        assert headers["X-Station-Signature"] == f"sha256={signed}"
        assert headers["X-Station-Record"] == json.loads(body)["record"]["hash"]
    station.post(picture(4), part="P4")
    Webhook(station.line, url).step()  # after a restart: only what is new
    assert [json.loads(body)["partId"] for body, _ in receiver.asked[5:]] == ["P4"]


def test_a_receiver_that_is_not_there_is_tried_again_later(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "a secret of the test")
    station.post(picture(1))
    webhook = Webhook(station.line, "http://127.0.0.1:9/")
    assert webhook.step() < webhook.step() and webhook.taken == 0


def test_a_webhook_needs_a_secret_and_a_url(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    with pytest.raises(SettingsError, match=SECRET):
        Webhook(station.line, "http://127.0.0.1:9/")
    with pytest.raises(SettingsError, match="http"):
        Webhook(station.line, "file:///etc/passwd")
