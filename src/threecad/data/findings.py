"""What a look at an image set finds, and the list of images without which it would be gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from threecad.errors import FileError
from threecad.files import write_text


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # `fit` or `evaluate` would stop
    WARNING = "warning"  # they would run, and their result would mean something else than it seems to
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd."""

    severity: Severity
    path: Path  # the file or folder to look at
    what: str  # what was expected there and what was found, without the path
    leave_out: tuple[Path, ...] = ()  # images without which it would be gone


def as_content(root: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings as JSON has them, with paths relative to the root, and how many there are of each severity."""
    return {
        "root": str(root),
        "counts": {severity.value: sum(finding.severity is severity for finding in findings) for severity in Severity},
        "findings": [
            {
                "severity": finding.severity.value,
                "path": finding.path.relative_to(root).as_posix(),
                "what": finding.what,
                "leave_out": [path.relative_to(root).as_posix() for path in finding.leave_out],
            }
            for finding in findings
        ],
    }


def write_exclusions(file: Path, root: Path, findings: Iterable[Finding]) -> int:
    """Number of images listed in a text file for `data.exclude`: those without which the findings would be gone.

    Raises:
        FileError: the file cannot be written.
    """
    lines = [
        "# Written by `threecad data verify`; a line is an image that is left out. Remove the lines you want to keep."
    ]
    listed: set[Path] = set()
    for finding in findings:
        new = [path for path in finding.leave_out if path not in listed]
        if new:
            lines += ["", f"# {finding.what}", *(path.relative_to(root).as_posix() for path in new)]
            listed.update(new)
    try:
        write_text(file, "\n".join(lines) + "\n")
    except UnicodeEncodeError as error:
        raise FileError(f"cannot write {file}: a file's name is not UTF-8 ({error.object!r}); rename it") from None
    return len(listed)
