"""The records of a station: whatever is changed, removed or inserted afterwards shows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from threecad.station import chain
from threecad.station.store import Outcome, Store, connect, store_faults


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of a store with five parts, one of them answered, and a change of thresholds."""
    one = Store(tmp_path / "store")
    for number in range(5):
        ticket = one.accept(f"{number:064}", part=f"P{number}", recipe="plate", lot="L")
        one.settle(ticket, Outcome("NG" if number == 3 else "OK", "", score=0.1 * number, good_share=0.5))
    one.answer(4, "defect", "scratch", "operator")
    one.note("thresholds", {"recipe": "plate"})
    one.close()
    return tmp_path / "store"


def changed(store: Path, *statements: str) -> list[str]:
    with closing(sqlite3.connect(store / "station.sqlite")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    return store_faults(store)[2]


def test_a_store_that_nobody_touched_is_whole(store: Path) -> None:
    count, head, faults = store_faults(store)
    assert (count, faults) == (7, []) and len(head) == 64


def test_a_changed_row_is_found(store: Path) -> None:
    faults = changed(store, """UPDATE chain SET body = replace(body, '"NG"', '"OK"') WHERE seq = 4""")
    assert any("row 4" in fault and "changed" in fault for fault in faults)


def test_a_changed_row_with_a_new_hash_of_its_own_is_found(store: Path) -> None:
    with closing(connect(store)) as database:
        row = next(row for row in chain.rows(database) if row.seq == 4)
    body = row.body.replace('"NG"', '"OK"')
    own = chain.row_hash(row.seq, row.at, row.kind, row.part, body, row.previous)
    faults = changed(
        store,
        f"UPDATE chain SET body = '{body}', hash = '{own}' WHERE seq = 4",
        "UPDATE parts SET verdict = 'OK' WHERE id = 4",
    )
    assert any("row 5" in fault and "does not follow" in fault for fault in faults)


@pytest.mark.parametrize("seq", [1, 3, 7], ids=["the first", "one between", "the last"])
def test_a_removed_row_is_found(store: Path, seq: int) -> None:
    assert any("missing" in fault for fault in changed(store, f"DELETE FROM chain WHERE seq = {seq}"))


def test_an_inserted_row_is_found(store: Path) -> None:
    insert = "INSERT INTO chain SELECT 8, at, kind, NULL, body, previous, hash FROM chain WHERE seq = 7"
    assert any("row 8" in fault for fault in changed(store, insert))


def test_rows_that_changed_places_are_found(store: Path) -> None:
    swap = [f"UPDATE chain SET seq = {to} WHERE seq = {seq}" for seq, to in ((2, 99), (3, 2), (99, 3))]
    assert any("changed" in fault for fault in changed(store, *swap))


def test_what_is_looked_up_must_be_what_was_recorded(store: Path) -> None:
    assert changed(store, "UPDATE parts SET verdict = 'OK' WHERE id = 4") == [
        "part 4 was changed; not as recorded: verdict"
    ]
    assert "part 2 is missing among the parts" in changed(store, "DELETE FROM parts WHERE id = 2")
    assert any("answer" in fault for fault in changed(store, "UPDATE parts SET answer = 'good' WHERE id = 4"))


def test_the_command_says_what_is_wrong_and_exits_with_one(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from threecad.cli import app

    whole = CliRunner().invoke(app, ["audit", "verify", str(store)])
    assert (whole.exit_code, whole.output.splitlines()[-1].split(";")[0]) == (0, "7 records, 0 faults")
    changed(store, "DELETE FROM chain WHERE seq = 3")
    assert CliRunner().invoke(app, ["audit", "verify", str(store)]).exit_code == 1
