"""Lists that say which image shows what: CSV and JSON, with the line that does not fit named."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from threecad.errors import DataError


def read_csv(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column of every line of a CSV file.

    Raises:
        DataError: it cannot be read, or a column is missing; names the file and, where one is at fault, the line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.DictReader(opened, restval=None)
            missing = [column for column in columns if column not in (lines.fieldnames or ())]
            if missing:
                found = ", ".join(lines.fieldnames or ()) or "nothing"
                raise DataError(f"{file}: expected a column '{missing[0]}', found {found}")
            for line in lines:
                if any(line[column] is None for column in columns):
                    raise DataError(f"{file}, line {lines.line_num}: expected {len(columns)} cells, found fewer")
                yield lines.line_num, line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from None


def below(folder: Path, place: object, where: str) -> Path:
    """The file at `place` below `folder`, whichever slashes it is written with.

    Raises:
        DataError: `place` is no relative path, or leads out of the folder; `where` names it in the message.
    """
    if not isinstance(place, str) or not place:
        raise DataError(f"{where}: expected a path relative to {folder}, found {place!r}")
    path = PurePosixPath(place.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(place).drive or ".." in path.parts:
        raise DataError(f"{where}: expected a path relative to {folder} and below it, found '{place}'")
    return folder / path
