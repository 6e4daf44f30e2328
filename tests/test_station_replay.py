"""A replay says which past verdicts another model would change, and leaves the store as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from PIL import Image

from stations import Station, picture, recipe
from threecad.errors import RunError
from threecad.station.replay import replay
from threecad.station.store import store_faults


def test_a_stricter_model_changes_what_passed_and_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    station = Station(tmp_path / "store")
    for seed in range(6):
        station.post(picture(seed), part=f"P{seed}")
    station.post(picture(7, defect=True), part="P7")
    station.close()
    before = store_faults(tmp_path / "store")
    strict = replace(recipe().with_budgets(review_at=0.9, reject_at=0.9), name="strict")
    monkeypatch.setattr("threecad.station.replay.open_recipes", lambda folders: {"strict": strict})
    replayed = replay(tmp_path / "store", tmp_path, tmp_path / "out")
    verdicts = [strict.inspect(path).result.verdict for path in _pictures(tmp_path / "store")]
    assert replayed.count == 7 and len(replayed.changes) == verdicts.count("NG") - 1 > 0
    assert {(change.before, change.after) for change in replayed.changes} == {("OK", "NG")}
    with Image.open(tmp_path / "out" / f"{replayed.changes[0].id}.jpg") as image:
        assert image.size == (2 * 64 + 8, 48)
    assert replayed.changes[0].name in replayed.page.read_text()
    assert len((tmp_path / "out" / "changes.csv").read_text().splitlines()) == 1 + len(replayed.changes)
    assert store_faults(tmp_path / "store") == before


def _pictures(store: Path) -> list[Path]:
    return [path for path in (store / "pictures").rglob("*") if path.is_file()]


def test_the_same_model_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    station = Station(tmp_path / "store")
    for seed in range(4):
        station.post(picture(seed, defect=seed == 3))
    monkeypatch.setattr("threecad.station.replay.open_recipes", lambda folders: {"plate": recipe()})
    assert replay(tmp_path / "store", tmp_path, tmp_path / "out").changes == []  # while the station is at work
    station.close()


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected the store"):
        replay(tmp_path, tmp_path, tmp_path / "out")
