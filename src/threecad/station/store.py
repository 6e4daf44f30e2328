"""What a station keeps: a row for each part it accepted, and a chain of all that was said of them.

STORE/station.sqlite   the table `parts`, for looking up, and the table `chain`, which is the record
      pictures/, maps/ see `pictures.py`

A part is written down as accepted before it is inspected, and its record and its row change together: after a crash
every accepted part has exactly one record, or none yet and is then recorded as not inspected.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from threecad.errors import FileError, RunError
from threecad.station import chain

Answer = Literal["good", "defect", "skip"]

NOT_INSPECTED = "not inspected: the station stopped before it came to this part"

_TABLE = """
CREATE TABLE IF NOT EXISTS parts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL, part TEXT NOT NULL, recipe TEXT NOT NULL, lot TEXT NOT NULL, simulated INTEGER NOT NULL,
    picture TEXT NOT NULL, seq INTEGER, verdict TEXT, reason TEXT, score REAL, good_share REAL, duration_ms REAL,
    brightness REAL, sharpness REAL, answer TEXT, defect TEXT
);
CREATE INDEX IF NOT EXISTS parts_verdict ON parts (verdict, id);
CREATE INDEX IF NOT EXISTS parts_at ON parts (at);
CREATE INDEX IF NOT EXISTS parts_hours ON parts (recipe, substr(at, 1, 13), verdict);
CREATE INDEX IF NOT EXISTS parts_recipe ON parts (recipe, id);
CREATE INDEX IF NOT EXISTS parts_counts ON parts (recipe, verdict, duration_ms);
CREATE INDEX IF NOT EXISTS parts_lot ON parts (lot, id);
CREATE INDEX IF NOT EXISTS parts_defect ON parts (defect) WHERE defect != '';
CREATE INDEX IF NOT EXISTS parts_picture ON parts (picture, part);
CREATE INDEX IF NOT EXISTS parts_open ON parts (id) WHERE seq IS NULL;
CREATE INDEX IF NOT EXISTS parts_queue ON parts (id) WHERE verdict IN ('NG', 'REVIEW') AND answer IS NULL;
"""

_NEW_COLUMNS = {"across": "REAL", "down": "REAL", "removed": "INTEGER"}


class Ticket(NamedTuple):
    """A part on its way through the station."""

    id: int
    at: str  # when it was accepted, ISO 8601, UTC
    part: str
    recipe: str
    lot: str
    simulated: bool
    picture: str  # SHA-256


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is recorded of one inspection."""

    verdict: str
    reason: str
    score: float | None = None
    good_share: float | None = None
    regions: list[dict[str, Any]] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)  # review, reject, promised
    model: str = ""  # its hash
    start: str = ""  # ISO 8601, UTC
    end: str = ""
    duration_ms: float = 0.0
    brightness: float | None = None  # this and the next three: see `optics.py`
    sharpness: float | None = None
    across: float | None = None
    down: float | None = None
    golden: str = ""  # SHA-256 of the picture of the most similar part that passed
    scale: list[float] = field(default_factory=list)  # of the map's colours: low, threshold, high
    size: list[int] = field(default_factory=list)  # height and width of the picture


class Store:
    """The records of one station. One process writes; several threads of it may."""

    def __init__(self, folder: Path) -> None:
        """Open or make a store.

        Raises:
            FileError: it cannot be written.
            RunError: another station works on it.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (folder / "station.lock").open("w")
        except OSError as error:
            raise FileError(f"cannot write the store {folder}: {error.strerror}; choose another --store") from None
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise RunError(f"another station works on {folder}; stop it, or choose another --store") from None
        self._writing = threading.Lock()
        try:
            self._database = connect(folder)
            self._database.executescript("PRAGMA journal_mode = WAL;" + chain.TABLE + _TABLE)
            self._add_new_columns()
            self._database.execute("PRAGMA synchronous = FULL")  # an accepted part outlives a power cut
        except sqlite3.Error as error:
            self._lock_file.close()
            raise FileError(f"cannot open {folder / 'station.sqlite'}: {error}; is it a store of a station?") from None

    def _add_new_columns(self) -> None:
        """Those that a store of an earlier version has not."""
        known = {column[1] for column in self._database.execute("PRAGMA table_info(parts)")}
        for column, kind in _NEW_COLUMNS.items():
            if column not in known:
                self._database.execute(f"ALTER TABLE parts ADD COLUMN {column} {kind}")
        for name, condition in (("kept", "removed IS NULL"), ("removed", "removed = 1")):
            self._database.execute(f"CREATE INDEX IF NOT EXISTS parts_{name} ON parts (id) WHERE {condition}")

    def close(self) -> None:
        """Let another station work on it."""
        with self._writing:
            self._database.close()
            self._lock_file.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing.

        Raises:
            FileError: the disk is full, or the store cannot be written.
        """
        with self._writing:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise FileError(f"cannot write the store: {error}; is there room on the disk?") from None
                raise

    def accept(self, picture: str, part: str = "", recipe: str = "", lot: str = "", simulated: bool = False) -> Ticket:
        """A part that from now on has a record, or will be reported as not inspected."""
        at = now()
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT INTO parts (at, part, recipe, lot, simulated, picture) VALUES (?, ?, ?, ?, ?, ?)",
                (at, part, recipe, lot, simulated, picture),
            )
            return Ticket(int(cursor.lastrowid or 0), at, part, recipe, lot, simulated, picture)

    def settle(self, ticket: Ticket, outcome: Outcome) -> chain.Row:
        """The one record of a part.

        Raises:
            RunError: it has one already.
        """
        content = {**ticket._asdict(), **asdict(outcome)}
        with self._transaction() as database:
            row = chain.append(database, now(), "result", ticket.id, content)
            columns = ", ".join(f"{name} = ?" for name in LOOKED_UP)
            changed = database.execute(
                f"UPDATE parts SET seq = ?, {columns} WHERE id = ? AND seq IS NULL",
                (row.seq, *(content[name] for name in LOOKED_UP), ticket.id),
            )
            if changed.rowcount != 1:
                raise RunError(f"part {ticket.id} has a record already")
            return row

    def settle_unfinished(self) -> int:
        """How many parts an earlier run of the station had accepted and not inspected; each has a record now."""
        columns = ", ".join(Ticket._fields)
        left = self.read(f"SELECT {columns} FROM parts WHERE seq IS NULL ORDER BY id")
        for values in left:
            self.settle(Ticket(*values), Outcome("REVIEW", NOT_INSPECTED))
        return len(left)

    def answer(self, part: int, answer: Answer | None, defect: str, who: str) -> chain.Row:
        """What a person says of a part; None takes the last answer back.

        Raises:
            RunError: no such part, or it has no record yet.
        """
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE parts SET answer = ?, defect = ? WHERE id = ? AND seq IS NOT NULL", (answer, defect, part)
            )
            if changed.rowcount != 1:
                raise RunError(f"there is no inspected part {part}")
            return chain.append(database, now(), "answer", part, {"answer": answer, "defect": defect, "who": who})

    def mark_removed(self, part: int) -> None:
        """The picture and the map of a part are no longer kept."""
        with self._transaction() as database:
            database.execute("UPDATE parts SET removed = 1 WHERE id = ?", (part,))

    def note(self, kind: str, content: dict[str, Any]) -> chain.Row:
        """A row about the station itself: thresholds, a model, an alarm."""
        with self._transaction() as database:
            return chain.append(database, now(), kind, None, content)

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of a query of ours, while others write."""
        with closing(connect(self.folder, read_only=True)) as database:
            return database.execute(query, values).fetchall()

    def result(self, part: int) -> chain.Row | None:
        """The record of a part."""
        found = self.read("SELECT * FROM chain WHERE part = ? AND kind = 'result'", (part,))
        return chain.Row(*found[0]) if found else None

    def notes(self, kind: str) -> list[chain.Row]:
        """All rows of a kind, the oldest first."""
        return [chain.Row(*values) for values in self.read("SELECT * FROM chain WHERE kind = ? ORDER BY seq", (kind,))]


LOOKED_UP = ("verdict", "reason", "score", "good_share", "duration_ms", "brightness", "sharpness", "across", "down")
"""Columns of `parts` that repeat what the record says."""


def connect(folder: Path, read_only: bool = False) -> sqlite3.Connection:
    """The database of a store.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    place = (folder / "station.sqlite").absolute().as_uri() + ("?mode=ro" if read_only else "")
    return sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False, timeout=10)


def now() -> str:
    """This moment, ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refuse_unless_store(folder: Path) -> None:
    """Nothing, where the folder is a store.

    Raises:
        RunError: it is none.
    """
    if not (folder / "station.sqlite").is_file():
        raise RunError(f"expected the store of a station at {folder}, found no station.sqlite there")


def store_faults(folder: Path) -> tuple[int, str, list[str]]:
    """How many rows the chain of a store has, its last hash, and what is wrong, a sentence each.

    Beside the chain, the rows that are looked up must say what their records say.

    Raises:
        RunError: there is no store.
    """
    refuse_unless_store(folder)
    try:
        with closing(connect(folder, read_only=True)) as database:
            found = [*chain.faults(database), *_looked_up_faults(database)]
            last = database.execute("SELECT count(*), max(seq) FROM chain").fetchone()
            head = database.execute("SELECT hash FROM chain WHERE seq = ?", (last[1],)).fetchone()
    except sqlite3.Error as error:
        raise RunError(f"{folder / 'station.sqlite'} cannot be read: {error}") from None
    return last[0], head[0] if head else chain.START, found


def _looked_up_faults(database: sqlite3.Connection) -> Iterator[str]:
    names = (*Ticket._fields, *LOOKED_UP)
    looked_up = {}
    for values in database.execute(f"SELECT seq, answer, defect, {', '.join(names)} FROM parts WHERE seq IS NOT NULL"):
        looked_up[values[3]] = values
    recorded: dict[int, dict[str, Any]] = {}
    answers: dict[int, tuple[Any, Any]] = {}
    for row in chain.rows(database):
        if row.part is None:
            continue
        if row.kind == "answer":
            answers[row.part] = row.content["answer"], row.content["defect"]
        elif row.part in recorded:
            yield f"part {row.part} has two records"
        else:
            recorded[row.part] = row.content | {"seq": row.seq}
    for part in sorted({*looked_up, *recorded}):
        if part not in recorded:
            yield f"the record of part {part} is missing"
        elif part not in looked_up:
            yield f"part {part} is missing among the parts"
        else:
            seq, answer, defect, *values = looked_up[part]
            wrong = [name for name, value in zip(names, values, strict=True) if value != recorded[part].get(name)]
            wrong += ["record"] if seq != recorded[part]["seq"] else []
            wrong += ["answer"] if (answer, defect) != answers.get(part, (None, None)) else []
            if wrong:
                yield f"part {part} was changed; not as recorded: {', '.join(wrong)}"
