"""Hashes of files' contents, remembered for as long as a file's size and times stay the same.

The memory is a small database in the cache that several processes may use; without it hashes are computed again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from threecad.cache import cache_folder
from threecad.errors import DataError
from threecad.files import file_sha256
from threecad.threads import ordered

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


def content_hashes(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """SHA-256 of each file's bytes; a file of unchanged size and times is not read again.

    Args:
        progress: called for each file, and only where one has to be read.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    hashes: dict[Path, str] = {}
    with _Hashes() as known:
        for path in paths:
            if (sha256 := known.of(path)) is not None:
                hashes[path] = sha256
        missing = [path for path in dict.fromkeys(paths) if path not in hashes]
        for done, (path, entry) in enumerate(zip(missing, ordered(_hash, missing), strict=True), start=1):
            known.add(entry)
            hashes[path] = entry.sha256
            if progress:
                progress(done, len(missing))
    return [hashes[path] for path in paths]


@dataclass(frozen=True)
class _Entry:
    """The hash of a file as it was at a moment."""

    name: bytes  # of the file behind every link: a name need not be UTF-8
    stamp: str  # size and times
    sha256: str


def _hash(path: Path) -> _Entry:
    """The file's name, stamp and hash.

    Raises:
        DataError: it is gone or cannot be read.
    """
    try:
        name, stamp = _name_and_stamp(path)
        return _Entry(name, stamp, file_sha256(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _name_and_stamp(path: Path) -> tuple[bytes, str]:
    state = path.stat()
    return os.fsencode(path.resolve()), f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _unreadable(path: Path, error: OSError) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return DataError(f"{path} cannot be read: {error.strerror or error}")
    if path.is_symlink():
        return DataError(f"{path} is a link to {path.readlink()}, which is not there; mend the link or remove it")
    return DataError(f"{path} was there a moment ago and is gone now")


class _Hashes:
    """Content hashes by file, size and times, in a database that several processes may use."""

    def __enter__(self) -> _Hashes:
        file = cache_folder("pixels") / "hashes.sqlite"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(file)
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                file.unlink()  # damaged, or another version's: it is only a memory
                self._open(file)
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"cannot use the cache {file.parent}: {error}; set THREECAD_CACHE to a writable folder"
            ) from None
        self.new: list[_Entry] = []
        return self

    def _open(self, file: Path) -> None:
        self.database = sqlite3.connect(file, timeout=60)
        self.database.execute("CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT)")
        self.known = {name: (stamp, sha256) for name, stamp, sha256 in self.database.execute("SELECT * FROM hashes")}

    def of(self, path: Path) -> str | None:
        """The hash of a file that has not changed since it was added; None for any other."""
        try:
            name, stamp = _name_and_stamp(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        known_stamp, sha256 = self.known.get(name, ("", ""))
        return sha256 if known_stamp == stamp else None

    def add(self, entry: _Entry) -> None:
        """Remember a hash, here and for later processes."""
        self.known[entry.name] = (entry.stamp, entry.sha256)
        self.new.append(entry)

    def __exit__(self, *exception: object) -> None:
        rows = [(entry.name, entry.stamp, entry.sha256) for entry in self.new]
        try:
            with self.database:
                self.database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            pass  # only a memory: the hashes are computed again next time
        finally:
            self.database.close()
