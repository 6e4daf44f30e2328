"""`--watch FOLDER`: pictures that arrive in a folder are inspected, and a line is written for each.

FOLDER/PART.png            inspected once it has not changed between two looks; its name without suffix is the part's
STORE/watched.jsonl        a line a picture: its file, and the answer as over HTTP, or why it was not inspected

A picture is known by its name and content: after a restart none is inspected twice, and none is left without its line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from threecad.errors import DataError, FileError
from threecad.files import writing
from threecad.images import IMAGE_SUFFIXES
from threecad.station import chain
from threecad.station.answers import answer_of
from threecad.station.line import BusyError, Line

EVERY_S = 0.5
"""Seconds between two looks at the folder."""

Sign = tuple[int, int]
"""Size and time of change of a file."""


class Watched:
    """A folder in which pictures arrive."""

    def __init__(self, line: Line, folder: Path, recipe: str = "") -> None:
        """Begin where an earlier watch ended.

        Raises:
            FileError: the folder is not there, or the lines of before cannot be read.
        """
        if not folder.is_dir():
            raise FileError(f"expected a folder to watch, found none at {folder}")
        self.line, self.folder, self.recipe = line, folder, recipe
        self.lines = line.store.folder / "watched.jsonl"
        self._done: set[tuple[str, str]] = set()
        self._seen: dict[Path, Sign] = {}
        self._settled: dict[Path, Sign] = {}
        if self.lines.exists():
            for text in self._whole_lines():
                said = json.loads(text)
                self._done.add((said["file"], said["sha256"]))

    def step(self) -> float:
        """Inspect what has arrived; the seconds until the next look.

        Raises:
            FileError: the store cannot be written.
        """
        now = {path: sign for path in sorted(self.folder.iterdir()) if (sign := _sign(path))}
        for path, sign in now.items():
            if self._seen.get(path) == sign and self._settled.get(path) != sign and self._inspect(path):
                self._settled[path] = sign
        self._seen = now
        self._settled = {path: sign for path, sign in self._settled.items() if path in now}
        return EVERY_S

    def _inspect(self, path: Path) -> bool:
        """Whether the picture has its line now; False where it has to wait for a place."""
        try:
            content = path.read_bytes()
        except OSError:
            return False  # it is being moved; the next look tells
        sha256 = hashlib.sha256(content).hexdigest()
        if (path.name, sha256) in self._done:
            return True
        try:
            row = self._recorded(path.stem, sha256)
            if row is None:
                with self.line.place():
                    row = self.line.inspect(content, path.stem[:200], self.recipe)
            said: dict[str, Any] = answer_of(row)
        except BusyError:
            return False
        except DataError as error:
            said = {"error": str(error)}
        with writing(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"file": path.name, "sha256": sha256, **said}, ensure_ascii=False) + "\n")
        self._done.add((path.name, sha256))
        return True

    def _recorded(self, part: str, sha256: str) -> chain.Row | None:
        """The record that a killed station left without its line."""
        found = self.line.store.read("SELECT id FROM parts WHERE picture = ? AND part = ?", (sha256, part))
        return self.line.store.result(found[-1][0]) if found else None

    def _whole_lines(self) -> list[str]:
        """Lines of before; half a line, which a killed station leaves at the end, is removed."""
        with writing(self.lines):
            text = self.lines.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                self.lines.write_text(whole, encoding="utf-8")
        return whole.splitlines()


def _sign(path: Path) -> Sign | None:
    """What changes while a picture is still being written; None for what is no picture or has gone."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns
