"""Pictures go after a while, of parts that passed first; records stay, and what waits for a person stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from starlette.testclient import TestClient

from stations import Station, picture
from threecad.station.feedback import confirmed_good
from threecad.station.retention import GIGABYTE, Keep, Retention
from threecad.station.safety import Guard
from threecad.station.service import make_app
from threecad.station.store import store_faults

ALL = Keep(days=0)


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    """Parts 1 to 3 passed, 4 and 5 were answered, 6 was skipped, 7 waits."""
    one = Station(tmp_path / "store", guard=Guard())
    for seed in (1, 2, 3):
        one.post(picture(seed))
    for seed, answer in ((4, "good"), (5, "defect"), (6, "skip"), (7, None)):
        number = one.post(picture(seed, defect=True)).json()["resultId"]
        if answer:
            one.client.post(f"/v1/parts/{number}/answer", json={"answer": answer})
    yield one
    one.close()


def kept(station: Station) -> list[int]:
    """Parts that have a picture and a map."""
    status = {part: station.client.get(f"/v1/parts/{part}/overlay").status_code for part in range(1, 8)}
    return [part for part, code in status.items() if code == 200]


def test_without_a_limit_everything_stays(station: Station) -> None:
    Retention(station.line, Keep()).step()
    assert kept(station) == [1, 2, 3, 4, 5, 6, 7]


def test_what_waits_or_was_skipped_is_never_removed_and_every_record_stays(station: Station) -> None:
    Retention(station.line, ALL).step()
    assert kept(station) == [6, 7]
    assert station.client.get("/v1/parts/1").json()["verdict"] == "OK"
    assert "no longer kept" in station.client.get("/v1/parts/1/image").json()["detail"]
    assert store_faults(station.folder)[2] == []
    [removal] = station.store.notes("removal")
    assert (removal.content["passed"], removal.content["answered"]) == (3, 2)


def test_of_too_many_gigabytes_parts_that_passed_go_first_the_oldest_of_them_before_others(station: Station) -> None:
    station.line.pictures.measure()
    of_one = station.line.pictures.used / 7
    Retention(station.line, Keep(gigabytes=5.5 * of_one / GIGABYTE)).step()
    assert kept(station) == [3, 4, 5, 6, 7]
    Retention(station.line, Keep(gigabytes=3.5 * of_one / GIGABYTE)).step()
    assert kept(station) == [5, 6, 7]
    Retention(station.line, Keep(gigabytes=of_one / 2 / GIGABYTE)).step()
    assert kept(station) == [6, 7]


def test_what_is_counted_is_what_lies_on_the_disk(station: Station) -> None:
    retention = Retention(station.line, ALL)
    station.post(picture(8, defect=True))
    retention.step()
    counted = retention.disk.used
    station.line.pictures.measure()
    assert counted == station.line.pictures.used > 0


def test_a_picture_that_a_waiting_part_has_too_stays(station: Station) -> None:
    again = station.post(picture(4, defect=True)).json()["resultId"]  # as part 4, which was answered
    Retention(station.line, ALL).step()
    assert station.client.get(f"/v1/parts/{again}/overlay").status_code == 200


def test_confirmed_good_parts_count_only_from_after_the_newest_that_is_no_longer_kept(station: Station) -> None:
    recipe = station.line.recipes["plate"]
    Retention(station.line, ALL).step()
    for part in (6, 7):
        station.client.post(f"/v1/parts/{part}/answer", json={"answer": "good"})
    assert [one.id for one in confirmed_good(station.store, recipe)] == [6, 7]


def test_the_page_says_what_is_kept_and_when_only_people_can_make_room(station: Station) -> None:
    retention = Retention(station.line, Keep(days=30, gigabytes=1e-6))
    retention.step()
    page = TestClient(make_app(station.line, Guard(), retention=retention)).get("/health").text
    assert "Pictures are kept for 30 days and at most 1e-06 GB together" in page
    assert "5 parts have a record but no picture any more" in page and "Answer them." in page
