"""Another model in a recipe's place: no part is dropped, and the history says which model judged what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Darkness, Station, picture, recipe
from threecad.errors import DataError
from threecad.station.models import Models, as_started
from threecad.station.safety import Guard, Role
from threecad.station.store import store_faults

PATH = "/v1/recipes/plate/model"
OTHER = "1" * 64


class Blind(Darkness):
    """A network that cannot look at anything."""

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(pixels) == 1:
            raise DataError("the network gives no finite score")
        return super().__call__(pixels)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Two models, of which `blind` cannot look at a picture."""
    networks = {"newer": Darkness(), "blind": Blind()}
    for name in networks:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "bundle.json").touch()

    def opened(folders: list[Path]) -> dict[str, Any]:
        name = folders[0].name
        return {name: replace(recipe(networks[name], name), model=OTHER)}

    monkeypatch.setattr("threecad.station.models.open_recipes", opened)
    return Models(tmp_path / "models")


@pytest.fixture
def station(tmp_path: Path, models: Models) -> Iterator[Station]:
    one = Station(tmp_path / "store", guard=Guard(), models=models)
    yield one
    one.close()


def test_parts_on_their_way_are_finished_by_the_model_of_before_and_none_is_dropped(station: Station) -> None:
    station.network.may_go.clear()
    answers: list[Any] = []
    waiting = [threading.Thread(target=lambda k=k: answers.append(station.post(picture(k)).json())) for k in range(4)]
    for thread in waiting:
        thread.start()
    while station.store.read("SELECT count(*) FROM parts")[0][0] < 4:
        time.sleep(0.01)
    changed = station.client.post(PATH, json={"model": "newer"})
    station.network.may_go.set()
    for thread in waiting:
        thread.join()
    after = station.post(picture(9)).json()
    assert changed.json()["model"] == after["model"] == OTHER
    assert [(one["verdict"], one["model"]) for one in answers] == [("OK", "0" * 64)] * 4
    assert store_faults(station.folder)[2] == []


def test_the_history_says_who_put_which_model_in_the_place_and_the_page_shows_it(station: Station) -> None:
    said = station.client.post(PATH, json={"model": "newer"}).json()
    assert said["choices"] == ["blind", "newer"]
    [last] = said["history"]
    assert (last["chosen"], last["model"], last["who"]) == ("newer", OTHER, "engineer")
    assert f"newer <code>{OTHER[:16]}" in station.client.get("/records").text
    assert station.client.get("/v2/models/plate").json()["versions"] == [OTHER]


def test_a_model_that_cannot_look_at_a_picture_does_not_go_live(station: Station) -> None:
    assert station.client.post(PATH, json={"model": "blind"}).status_code == 422
    assert station.line.recipes["plate"].model == "0" * 64 and station.store.notes("model") == []
    assert station.post(picture(1)).json()["verdict"] == "OK"


@pytest.mark.parametrize("name", ["", "../store", "newer/..", "/etc", "none"])
def test_only_a_name_from_the_folder_is_a_model(station: Station, name: str) -> None:
    refused = station.client.post(PATH, json={"model": name})
    assert refused.status_code == 422 and "no model" in refused.json()["detail"]


def test_only_the_engineer_changes_models(tmp_path: Path, models: Models) -> None:
    tokens = {Role.OPERATOR: "operator-token-1", Role.ENGINEER: "engineer-token-1"}
    station = Station(tmp_path / "store", guard=Guard(tokens), models=models)
    headers = {"Authorization": "Bearer operator-token-1"}
    assert station.client.post(PATH, headers=headers, json={"model": "newer"}).status_code == 403
    assert station.client.get(PATH, headers=headers).json()["choices"] == ["blind", "newer"]
    station.close()


def test_a_restart_goes_on_with_the_model_that_was_chosen_unless_it_starts_with_another(
    station: Station, models: Models
) -> None:
    told: list[str] = []
    as_started(recipe(), station.store, models, told.append)
    station.client.post(PATH, json={"model": "newer"})
    assert as_started(recipe(), station.store, models, told.append).model == OTHER
    newest = replace(recipe(), model="2" * 64)
    assert as_started(newest, station.store, models, told.append).model == newest.model
    assert told == [] and [row.content["model"] for row in station.store.notes("model")][-1] == newest.model


def test_where_the_chosen_model_has_gone_a_restart_says_so(station: Station, models: Models) -> None:
    as_started(recipe(), station.store, models, print)
    station.client.post(PATH, json={"model": "newer"})
    told: list[str] = []
    assert as_started(recipe(), station.store, Models(), told.append).model == "0" * 64
    assert "newer" in told[0] and "no model" in told[0]
