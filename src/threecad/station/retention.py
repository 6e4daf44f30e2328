"""Pictures and maps that are removed after a while, so that a disk lasts; records and hashes stay for ever.

First go those of parts that passed, then those of parts that have been answered, the oldest first. Those that wait for
a person, were skipped, or have no record yet are never removed.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from threecad.station.line import Line

EVERY_S = 60.0
"""Seconds between two looks at what is kept."""

AT_ONCE = 500  # parts between two looks whether to stop
GIGABYTE = 10**9

_PASSED, _ANSWERED = "verdict = 'OK'", "verdict != 'OK' AND answer IN ('good', 'defect')"


@dataclass(frozen=True, slots=True)
class Keep:
    """How much is kept; everything without either."""

    days: float | None = None
    gigabytes: float | None = None

    def __bool__(self) -> bool:
        return self.days is not None or self.gigabytes is not None

    @property
    def in_words(self) -> str:
        """For the people at the line."""
        if not self:
            return "Pictures are kept for ever."
        limits = [f"{self.days:g} days" if self.days is not None else ""]
        limits.append(f"{self.gigabytes:g} GB together" if self.gigabytes is not None else "")
        return (
            f"Pictures are kept for {' and at most '.join(filter(None, limits))}; then those of parts that passed "
            "go first, and those that wait for a person never."
        )


class Disk(NamedTuple):
    """What lies on the disk of a store, in bytes."""

    used: int  # by pictures and maps
    free: int


class _Old(NamedTuple):
    id: int
    at: str
    picture: str


class Retention:
    """Removes what need not be kept any longer."""

    def __init__(self, line: Line, keep: Keep) -> None:
        self.line, self.keep = line, keep
        line.pictures.measure()

    @property
    def disk(self) -> Disk:
        """What is used and left."""
        return Disk(self.line.pictures.used, shutil.disk_usage(self.line.store.folder).free)

    @property
    def removed(self) -> int:
        """Parts whose picture is no longer kept."""
        return int(self.line.store.read("SELECT count(*) FROM parts WHERE removed = 1")[0][0])

    @property
    def is_over(self) -> bool:
        """Whether more is kept than is allowed, since all of it waits for a person."""
        return self.keep.gigabytes is not None and self.disk.used > 1.01 * self.keep.gigabytes * GIGABYTE

    def step(self) -> float:
        """Remove some of what need not be kept; the seconds until the next look.

        Raises:
            FileError: the store cannot be written.
        """
        gone, before = {"passed": 0, "answered": 0}, self.line.pictures.used
        for kind, condition in (("passed", _PASSED), ("answered", _ANSWERED)):
            for part in self._oldest(condition, AT_ONCE - sum(gone.values())):
                if not self._must_go(part):
                    break
                self._remove(part)
                gone[kind] += 1
        if any(gone.values()):
            freed = before - self.line.pictures.used
            self.line.store.note("removal", {**gone, "bytes": freed, **asdict(self.keep)})
        return 0.0 if sum(gone.values()) == AT_ONCE else EVERY_S

    def _oldest(self, condition: str, limit: int) -> list[_Old]:
        query = f"SELECT id, at, picture FROM parts WHERE removed IS NULL AND {condition} ORDER BY id LIMIT ?"
        return [_Old(*values) for values in self.line.store.read(query, (limit,))]

    def _must_go(self, part: _Old) -> bool:
        if self.keep.gigabytes is not None and self.line.pictures.used > self.keep.gigabytes * GIGABYTE:
            return True
        if self.keep.days is None:
            return False
        return part.at < (datetime.now(UTC) - timedelta(days=self.keep.days)).isoformat()

    def _remove(self, part: _Old) -> None:
        """A picture that another part has, too, stays for that one."""
        pictures, store = self.line.pictures, self.line.store
        with pictures.keeping:  # no part may be accepted with this picture meanwhile
            others = "SELECT 1 FROM parts WHERE picture = ? AND id != ? AND removed IS NULL LIMIT 1"
            pictures.remove_map(part.id)
            if not store.read(others, (part.picture, part.id)):
                pictures.remove(part.picture)
            store.mark_removed(part.id)
