"""The inspection station over HTTP: verdicts, one record a part, roles, limits, and what a crash leaves."""

from __future__ import annotations

import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from conftest import scratch
from stations import Station, picture, recipe
from threecad.errors import RunError, SettingsError
from threecad.station.line import Limits
from threecad.station.models import Models, as_left
from threecad.station.safety import ENGINEER_TOKEN, OPERATOR_TOKEN, Guard, Role, guard_for
from threecad.station.serving import open_line
from threecad.station.store import NOT_INSPECTED, Store, store_faults


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    for name in (OPERATOR_TOKEN, ENGINEER_TOKEN):
        monkeypatch.delenv(name, raising=False)
    one = Station(tmp_path / "store")
    yield one
    one.close()


def test_a_part_gets_a_verdict_with_its_regions_in_the_words_of_machine_vision(station: Station) -> None:
    good = station.post(picture(1), part="P1", lot="L7").json()
    bad = station.post(picture(2, defect=True), part="P2", lot="L7").json()
    assert (good["verdict"], good["partId"], good["jobId"], good["recipeId"]) == ("OK", "P1", "L7", "plate")
    assert bad["verdict"] == "NG" and "good parts" in bad["reason"]
    x, y, width, height = bad["regions"][0]["box"]
    rows, columns = np.nonzero(scratch(2))
    assert (x, y) == (columns.min(), rows.min()) and (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert bad["processingTimes"]["processingDuration"] > 0 and bad["model"] == "0" * 64
    assert bad["thresholds"]["promised_reject"] > 0


def test_a_form_says_the_same_as_raw_bytes(station: Station) -> None:
    raw = station.post(picture(3), part="A", lot="B").json()
    form = station.client.post(
        "/v1/inspect", files={"image": ("x.png", picture(3))}, data={"part": "A", "lot": "B", "recipe": "plate"}
    ).json()
    assert {key: form[key] for key in ("partId", "jobId", "verdict", "score")} == {
        key: raw[key] for key in ("partId", "jobId", "verdict", "score")
    }


def test_picture_map_overlay_and_a_part_that_passed_can_be_fetched(station: Station) -> None:
    station.post(picture(1))
    links = station.post(picture(2, defect=True)).json()["links"]
    for kind in ("image", "map", "overlay", "golden"):
        answer = station.client.get(links[kind])
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.size == (64, 48), kind
    with Image.open(io.BytesIO(station.client.get(links["map"]).content)) as layer:
        opacity = np.asarray(layer)[..., 3]
    assert opacity[scratch(2) > 0].min() > opacity[scratch(2) == 0].max()


def test_what_cannot_be_decoded_is_set_aside_and_never_passes(station: Station) -> None:
    whole = picture(4)
    torn = station.post(whole[: len(whole) // 2]).json()
    assert torn["verdict"] == "REVIEW" and torn["reason"].startswith("not inspected") and torn["links"]["map"] is None
    refused = station.post(b"no picture")
    assert refused.status_code == 422 and str(station.folder) not in refused.text


def test_past_the_deadline_a_part_is_review_for_time_and_has_one_record(tmp_path: Path) -> None:
    station = Station(tmp_path / "store", Limits(deadline_s=0.05))
    station.network.may_go.clear()
    assert (station.post(picture(1)).json()["verdict"], station.post(picture(2)).json()["reason"]) == ("REVIEW", "time")
    station.close()
    count, _, faults = store_faults(station.folder)
    assert (count, faults) == (2, [])


def test_when_all_places_are_taken_the_answer_is_to_come_again(tmp_path: Path) -> None:
    station = Station(tmp_path / "store", Limits(places=2, deadline_s=20))
    station.network.may_go.clear()
    answers: list[Any] = []
    waiting = [threading.Thread(target=lambda k=k: answers.append(station.post(picture(k)))) for k in range(2)]
    for thread in waiting:
        thread.start()
    while station.store.read("SELECT count(*) FROM parts")[0][0] < 2:
        time.sleep(0.01)
    refused = station.post(picture(9))
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    station.network.may_go.set()
    for thread in waiting:
        thread.join()
    assert [answer.json()["verdict"] for answer in answers] == ["OK", "OK"]
    station.close()


def test_answers_are_kept_and_can_be_taken_back(station: Station) -> None:
    number = station.post(picture(2, defect=True)).json()["resultId"]
    queue = lambda: [one["id"] for one in station.client.get("/v1/parts", params={"queue": True}).json()]  # noqa: E731
    assert queue() == [number]
    station.client.post(f"/v1/parts/{number}/answer", json={"answer": "defect", "defect": "scratch"})
    assert queue() == [] and station.client.get(f"/v1/parts/{number}").json()["defect"] == "scratch"
    station.client.post(f"/v1/parts/{number}/undo")
    assert queue() == [number]
    assert [row.content["answer"] for row in station.store.notes("answer")] == ["defect", None]


def test_thresholds_change_with_a_record_and_outlive_a_restart(station: Station) -> None:
    before = station.client.get("/v1/recipes/plate/thresholds").json()
    after = station.client.post("/v1/recipes/plate/thresholds", json={"reject_at": 0.2, "review_at": 0.4}).json()
    assert after["thresholds"]["reject"] < before["thresholds"]["reject"]
    assert after["history"][-1]["before"] == before["thresholds"] and after["history"][-1]["who"] == "engineer"
    assert as_left(recipe(), station.store).thresholds == after["thresholds"]
    by_hand = recipe().with_budgets(reject_at=0.03)  # somebody has edited verdict.toml since
    newer = replace(by_hand, budgets_of_run=by_hand.budgets)
    assert as_left(newer, station.store).budgets["reject_at"] == 0.03
    crossed = station.client.post("/v1/recipes/plate/thresholds", json={"reject_at": 0.5})
    assert crossed.status_code == 422 and "review_at" in crossed.json()["detail"]


def test_an_operator_answers_and_only_the_engineer_changes_thresholds(tmp_path: Path) -> None:
    tokens = {Role.OPERATOR: "operator-token-1", Role.ENGINEER: "engineer-token-1"}
    station = Station(tmp_path / "store", guard=Guard(tokens))
    operator, engineer = ({"Authorization": f"Bearer {token}"} for token in tokens.values())
    path = "/v1/recipes/plate/thresholds"
    assert station.client.get(path).status_code == 401
    assert station.client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert station.client.get(path, headers=operator).status_code == 200
    assert station.client.post(path, headers=operator, json={"reject_at": 0.02}).status_code == 403
    assert station.client.post(path, headers=engineer, json={"reject_at": 0.02}).status_code == 200
    assert station.client.get("/v2/health/live").status_code == 200
    station.close()


def test_another_address_needs_two_different_long_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for operator, engineer in (("", ""), ("a" * 20, ""), ("a" * 20, "a" * 20), ("short", "a" * 20)):
        monkeypatch.setenv(OPERATOR_TOKEN, operator)
        monkeypatch.setenv(ENGINEER_TOKEN, engineer)
        with pytest.raises(SettingsError, match=OPERATOR_TOKEN if operator != "short" else "characters"):
            guard_for("0.0.0.0")
    monkeypatch.setenv(OPERATOR_TOKEN, "b" * 20)
    assert len(guard_for("0.0.0.0").tokens) == 2


def test_pages_of_other_sites_and_foreign_names_are_refused(station: Station) -> None:
    assert station.client.post("/v1/parts/1/undo", headers={"Origin": "http://elsewhere.test"}).status_code == 403
    assert station.client.get("/v2/health/live", headers={"Host": "elsewhere.test"}).status_code == 421
    headers = station.client.get("/v2/health/live").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert station.client.get("/docs").status_code == station.client.get("/redoc").status_code == 404


def test_too_many_bytes_or_pixels_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    station = Station(tmp_path / "store", Limits(max_bytes=200_000, max_pixels=64 * 48))
    assert station.post(picture(1)).status_code == 200
    assert station.post(b"x" * 300_000).status_code == 413
    large = io.BytesIO()
    Image.new("L", (5000, 5000)).save(large, "PNG")
    refused = station.post(large.getvalue())
    assert refused.status_code == 422 and "5000×5000" in refused.json()["detail"]
    chunks = iter([b"x" * 50_000] * 8)  # no length is told beforehand
    assert station.client.post("/v1/inspect", content=chunks).status_code == 413
    assert len(list((station.folder / "pictures").rglob("*.*"))) == 0
    station.close()


def test_no_path_from_a_client_reaches_the_disk(station: Station) -> None:
    station.post(picture(1), part="../../x", lot="/etc/passwd")
    for path in (
        "/v1/parts/..%2f..%2fetc/image",
        "/static/..%2fservice.py",
        "/static/../service.py",
        "/v1/parts/1/passwd",
    ):
        assert station.client.get(path).status_code in (404, 422), path
    named = {path.name for path in station.folder.rglob("*") if path.is_file()}
    assert all(name.startswith("station.") or name == "1.tiff" or len(name) == 64 for name in named)


def test_health_models_and_metrics_tell_what_is_served(station: Station) -> None:
    station.post(picture(1))
    station.post(picture(2, defect=True))
    assert station.client.get("/v2/health/ready").json() == {"ready": True}
    assert station.client.get("/v2/models/plate").json()["parameters"]["good_parts"] == 60
    assert station.client.get("/v2/models/other").status_code == 404
    text = station.client.get("/metrics").text
    assert 'threecad_parts_total{recipe="plate",verdict="NG"} 1' in text and "threecad_review_queue 1" in text


def test_malformed_requests_get_an_answer_each_and_the_service_lives(station: Station) -> None:
    rng = random.Random(0)
    paths = ("/v1/inspect", "/v1/parts/1/answer", "/v1/recipes/plate/thresholds", "/v1/parts", "/v1/parts/x/map", "/")
    kinds = ("application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", "\xff")
    bodies = (
        b"",
        b"{",
        b'{"answer": "\\ud800"}',
        b"[" * 2000,
        b'{"reject_at": 1e999}',
        b"--x\r\n\r\n",
        b"\x89PNG\r\n\x1a\n",
    )
    for _ in range(300):
        body = rng.choice(bodies) + rng.randbytes(rng.choice((0, 3, 200)))
        asked = {
            rng.choice(("part", "before", "limit", "verdict", "no")): rng.choice(("\0", "9" * 40, "é" * 300, "-1"))
        }
        headers = {b"content-type": rng.choice(kinds).encode("latin-1")}
        method = rng.choice(("GET", "POST", "PUT", "DELETE"))
        answer = station.client.request(method, rng.choice(paths), params=asked, content=body, headers=headers)
        assert answer.status_code < 500, (method, answer.url, body[:40], answer.text)
    assert station.post(picture(1)).json()["verdict"] == "OK"


def test_two_stations_do_not_share_a_store(station: Station) -> None:
    with pytest.raises(RunError, match="another station"):
        Store(station.folder)


def test_a_store_that_cannot_be_written_is_said_so_and_nothing_is_accepted(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        answer = station.post(picture(5))
    assert answer.status_code == 503 and "No space left" in answer.json()["detail"]
    assert str(station.folder) not in answer.text
    assert station.store.read("SELECT count(*) FROM parts") == [(0,)]
    assert station.post(picture(5)).status_code == 200


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import stations
station = stations.Station(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10_000):
    station.line.inspect(stations.picture(number), part=str(number))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_after_a_kill_every_accepted_part_has_exactly_one_record(tmp_path: Path) -> None:
    told: list[str] = []
    for pause in (0.0, 0.02, 0.07):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "store"), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            told.append(child.stdout.readline().strip())
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
            told.extend(line for line in child.stdout.read().splitlines() if line)
    station = Station(tmp_path / "store")
    accepted = station.store.read("SELECT count(*) FROM parts")[0][0]
    station.close()
    _, _, faults = store_faults(tmp_path / "store")
    assert faults == [] and accepted >= len(told) > 0
    with closing(sqlite3.connect(tmp_path / "store" / "station.sqlite")) as database:
        records = database.execute("SELECT count(*), count(DISTINCT part) FROM chain WHERE kind = 'result'").fetchone()
    assert records == (accepted, accepted)


def test_a_part_accepted_and_never_inspected_is_reported_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.accept("0" * 64, "lost")
    store.close()
    station = Station(tmp_path / "store")
    assert station.left == 1
    [row] = station.client.get("/v1/parts", params={"queue": True}).json()
    assert (row["part"], row["verdict"], row["reason"]) == ("lost", "REVIEW", NOT_INSPECTED)
    station.close()


def test_recipes_are_chosen_by_name_and_an_unknown_one_is_refused(station: Station) -> None:
    station.line.recipes["other"] = replace(recipe(), name="other")
    assert station.post(picture(1), recipe="other").json()["recipeId"] == "other"
    assert station.post(picture(1)).status_code == station.post(picture(1), recipe="third").status_code == 422


def test_folders_that_are_no_runs_are_refused_before_a_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        open_line([tmp_path], tmp_path / "store", Limits(), Models(), print)
    assert not (tmp_path / "store").exists()
