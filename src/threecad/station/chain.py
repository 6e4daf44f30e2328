"""A chain of rows, each with the hash of the row before, so that a change of history shows.

The hash of a row covers its number, time, kind, part, body and the hash before. Whoever changes, removes or inserts a
row has to write all later rows anew; the last hash, noted elsewhere, shows even that.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

START = "0" * 64
"""Stands for the hash before the first row."""

TABLE = """
CREATE TABLE IF NOT EXISTS chain (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL, kind TEXT NOT NULL, part INTEGER, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS chain_part ON chain (part);
CREATE INDEX IF NOT EXISTS chain_kind ON chain (kind, seq);
"""


class Row(NamedTuple):
    """One row of the chain."""

    seq: int
    at: str  # ISO 8601, UTC
    kind: str
    part: int | None
    body: str  # JSON
    previous: str
    hash: str

    @property
    def expected_hash(self) -> str:
        """What `hash` must be."""
        return row_hash(self.seq, self.at, self.kind, self.part, self.body, self.previous)

    @property
    def content(self) -> dict[str, Any]:
        """The body, read."""
        return json.loads(self.body)  # type: ignore[no-any-return]


def row_hash(seq: int, at: str, kind: str, part: int | None, body: str, previous: str) -> str:
    """SHA-256 in hexadecimal of all that a row says and of the hash before."""
    text = json.dumps([seq, at, kind, part, body, previous], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def append(database: sqlite3.Connection, at: str, kind: str, part: int | None, content: dict[str, Any]) -> Row:
    """The row, added to the end; inside the caller's transaction.

    Raises:
        ValueError: a number that JSON does not have.
    """
    used = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chain'").fetchone()
    last = database.execute("SELECT hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (used[0] if used else 0) + 1, last[0] if last else START
    body = json.dumps(content, ensure_ascii=False, allow_nan=False)
    row = Row(seq, at, kind, part, body, previous, row_hash(seq, at, kind, part, body, previous))
    database.execute("INSERT INTO chain VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return row


def rows(database: sqlite3.Connection) -> Iterator[Row]:
    """All rows, the oldest first."""
    return (Row(*values) for values in database.execute("SELECT * FROM chain ORDER BY seq"))


def faults(database: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with the chain, a sentence each; nothing where it is whole."""
    seq, previous = 0, START
    for row in rows(database):
        if row.seq != seq + 1:
            missing = f"row {seq + 1}" if row.seq == seq + 2 else f"rows {seq + 1} to {row.seq - 1}"
            yield f"{missing} missing before row {row.seq}"
        if row.hash != row.expected_hash:
            yield f"row {row.seq} ({row.kind} of {row.at}) was changed: its hash is not that of its content"
        elif row.previous != previous and row.seq == seq + 1:
            yield f"row {row.seq} ({row.kind} of {row.at}) does not follow the row before: one was changed or inserted"
        seq, previous = row.seq, row.hash
    used = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chain'").fetchone()
    if used and used[0] != seq:
        yield f"rows {seq + 1} to {used[0]} missing at the end" if used[0] > seq else "the count of rows was changed"
