"""People's answers give good parts to the thresholds, and a labelled set to an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Station, picture, recipe
from threecad.data.readers import read_categories
from threecad.station.feedback import write_labelled
from threecad.station.models import as_left
from threecad.station.store import store_faults

PATH = "/v1/recipes/plate/calibration"


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    """A station that has set aside three parts, one of them good."""
    one = Station(tmp_path / "store")
    one.client.post("/v1/recipes/plate/thresholds", json={"review_at": 0.6, "reject_at": 0.5})
    for seed in range(12):
        one.post(picture(seed))
    one.post(picture(20, defect=True))
    yield one
    one.close()


def waiting(station: Station) -> list[int]:
    """Parts in the queue, the oldest first."""
    return sorted(part["id"] for part in station.client.get("/v1/parts", params={"queue": True}).json())


def test_confirmed_good_parts_count_after_the_engineers_click_and_a_restart(station: Station) -> None:
    *good, bad = waiting(station)
    for part in good:
        station.client.post(f"/v1/parts/{part}/answer", json={"answer": "good"})
    station.client.post(f"/v1/parts/{bad}/answer", json={"answer": "defect", "defect": "scratch"})
    tried = station.client.get(PATH).json()
    assert tried["parts"] == len(good) and tried["after"]["review"] >= tried["before"]["review"]
    assert len(station.line.recipes["plate"].good_scores) == 60  # nothing has changed yet
    station.client.post(PATH)
    now = station.line.recipes["plate"]
    assert len(now.good_scores) == 60 + len(good) and now.thresholds == tried["after"]
    assert as_left(recipe(), station.store).thresholds == now.thresholds
    assert station.client.get(PATH).status_code == 422  # each counts once
    assert station.store.notes("calibration")[0].content["parts"] == good


def test_only_parts_before_the_oldest_one_without_an_answer_count(station: Station) -> None:
    first, second, *_ = waiting(station)
    station.client.post(f"/v1/parts/{second}/answer", json={"answer": "good"})
    station.client.post(f"/v1/parts/{first}/answer", json={"answer": "skip"})
    assert "the oldest first" in station.client.get(PATH).json()["detail"]
    station.client.post(f"/v1/parts/{first}/answer", json={"answer": "good"})
    assert station.client.get(PATH).json()["parts"] == 2


def test_answers_become_a_data_set_whatever_people_wrote(station: Station, tmp_path: Path) -> None:
    first, second, third, *_ = waiting(station)
    station.client.post(f"/v1/parts/{first}/answer", json={"answer": "good"})
    station.client.post(f"/v1/parts/{second}/answer", json={"answer": "defect", "defect": "../../deep scratch"})
    station.client.post(f"/v1/parts/{third}/answer", json={"answer": "defect", "defect": "good"})
    counts = write_labelled(station.folder, tmp_path / "out")
    assert counts == {"plate/test/good": 1, "plate/test/_deep_scratch": 1, "plate/test/defect": 1}
    [category] = read_categories(tmp_path / "out")
    assert sorted(sample.defect for sample in category.test) == ["_deep_scratch", "defect", "good"]
    assert write_labelled(station.folder, tmp_path / "out") == counts
    assert store_faults(station.folder)[2] == []
