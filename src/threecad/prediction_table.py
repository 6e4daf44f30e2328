"""`predictions.csv`, a row an image, and `regions.jsonl`, a line an image: on disk as soon as the image is done."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from threecad.errors import FileError, RunError
from threecad.files import read_json, replacing, sweep, write_json, writing
from threecad.verdicts import Region

ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
"""File names need not be UTF-8: their bytes go into the table as they are."""

About = dict[str, Any]
"""What rows depend on, by name: detector, precision, good parts, budgets."""

COLUMNS = ("image", "score", "good_share", "verdict", "reason", "map", "overlay", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `predictions.csv`; of a broken image only `image` and `error`."""

    image: str
    score: float | None = None
    good_share: float | None = None
    verdict: str = ""  # OK, REVIEW or NG; never OK where there is an error
    reason: str = ""
    map: str = ""
    overlay: str = ""
    error: str = ""

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        return ["" if getattr(self, name) is None else str(getattr(self, name)) for name in COLUMNS]


class PredictionTable:
    """The table in a folder of results, open for more rows.

    Attributes:
        file: predictions.csv.
        done: images that have a row without an error.
        errors: a line for each image that could not be inspected.
        verdicts: how many images got which verdict.
    """

    ABOUT: ClassVar[str] = "predictions.json"

    def __init__(self, folder: Path, about: About, resume: bool) -> None:
        self.folder, self.file, self.about_file = folder, folder / "predictions.csv", folder / self.ABOUT
        self.regions_file = folder / "regions.jsonl"
        self.about, self.resume = about, resume
        self.done: set[str] = set()
        self.errors: list[str] = []
        self.verdicts: Counter[str] = Counter()

    def __enter__(self) -> PredictionTable:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        kept = self._finished() if self.resume else []
        if not self.resume:
            self._remove_earlier()
        write_json(self.about_file, self.about)
        self.images = [row["image"] for row in kept]
        self.done = set(self.images)
        self.verdicts.update(row["verdict"] for row in kept)
        lines = [line for line in _lines(self.regions_file) if json.loads(line)["image"] in self.done]
        self._write(kept, lines)
        with writing(self.file):
            self.stream = self.file.open("a", **ENCODING)
            self.region_lines = self.regions_file.open("a", encoding="utf-8", newline="")
        self.rows = csv.writer(self.stream, lineterminator="\n")
        return self

    def append(self, row: Row, regions: Sequence[Region] = ()) -> None:
        """Put a row at the end, at once, after the line of its regions; a broken image has no such line."""
        with writing(self.file):
            if not row.error:
                content = {"image": row.image, "regions": [region.as_json() for region in regions]}
                self.region_lines.write(json.dumps(content) + "\n")
                self.region_lines.flush()
            self.rows.writerow(row.cells())
            self.stream.flush()
        self.images.append(row.image)
        if row.error:
            self.errors.append(row.error)
        else:
            self.verdicts[row.verdict] += 1

    def arrange(self, images: Sequence[str]) -> None:
        """Close the table in the order of `images`; rows of other images, of an earlier attempt, come first.

        What processes that died have left half-written is removed.
        """
        self._close()
        self._sweep()
        if self.images == list(images):
            return
        place = {image: number for number, image in enumerate(images)}
        rows = sorted(read_rows(self.file), key=lambda row: place.get(row["image"], -1))
        lines = sorted(_lines(self.regions_file), key=lambda line: place.get(json.loads(line)["image"], -1))
        self._write(rows, lines)

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _close(self) -> None:
        with writing(self.file):
            for stream in (self.region_lines, self.stream):
                if not stream.closed:
                    stream.flush()
                    os.fsync(stream.fileno())
                    stream.close()

    def _write(self, rows: Iterable[Mapping[str, str]], lines: Iterable[str]) -> None:
        """Both files anew."""
        with replacing(self.file) as temporary, temporary.open("w", **ENCODING) as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows([row[name] for name in COLUMNS] for row in rows)
        with replacing(self.regions_file) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")

    def _sweep(self) -> None:
        """Remove what killed processes have left half-written, beside the table and among maps and overlays."""
        sweep(self.folder)
        for kind in ("maps", "overlays"):
            sweep(self.folder / kind, at_any_depth=True)

    def _finished(self) -> list[dict[str, str]]:
        """Rows of an earlier attempt by the same detector, whose files are there.

        Raises:
            RunError: the rows are another detector's.
        """
        if not self.file.exists():
            return []
        try:
            before = read_json(self.about_file)
        except FileError:
            before = None
        if before != self.about:
            raise RunError(
                f"{self.folder} holds predictions of {before}, this run is {self.about};\n"
                "choose another --out, or leave out --resume to replace them"
            )
        return [row for row in read_rows(self.file) if not row["error"] and self._has_files(row)]

    def _has_files(self, row: dict[str, str]) -> bool:
        return all((self.folder / row[name]).is_file() for name in ("map", "overlay") if row[name])

    def _remove_earlier(self) -> None:
        """Remove the maps and overlays that an earlier table names: beside a new one they would be another run's."""
        for row in read_rows(self.file):
            for name in ("map", "overlay"):
                file = self.folder / row[name]
                if row[name].startswith((f"{name}s/",)) and self.folder.resolve() in file.resolve().parents:
                    file.unlink(missing_ok=True)


def _lines(file: Path) -> list[str]:
    """Whole lines of a file, none where it is not there."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines(keepends=True)


def read_rows(file: Path) -> Iterable[dict[str, str]]:
    """Whole rows of a `predictions.csv`; none where there is no such file. A line cut by a kill is left out."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(whole.splitlines(keepends=True))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise RunError(f"expected {file} to be a table of predictions, found another file; choose another --out")
    return [row for row in rows if all(row.get(name) is not None for name in COLUMNS)]
