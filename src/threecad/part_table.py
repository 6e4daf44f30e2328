"""`parts.csv`, a row a part, where the setting `data.part` says which images show one part.

A part is what its worst image is. One that was not seen whole is never OK: an image that could not be inspected, or
fewer images than every good part has, make it REVIEW.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from threecad.files import replacing, writing
from threecad.groups import compile_pattern, group_of, path_for_patterns
from threecad.prediction_table import ENCODING, read_rows
from threecad.verdicts import GoodScores

_BADNESS = {"OK": 0, "REVIEW": 1, "": 1, "NG": 2}
"""Of an image's verdict; one that could not be inspected has none."""

ImageRow = Mapping[str, str]
"""A line of `predictions.csv`."""


@dataclass(frozen=True, slots=True)
class PartRow:
    """A line of `parts.csv`."""

    part: str
    verdict: str
    reason: str
    score: str  # the highest of its images'; empty where none has one
    good_share: str  # of that score
    images: int  # that were given
    image: str  # the one that the verdict comes from


def part_rows(rows: Iterable[ImageRow], pattern: str, fewest_images: int) -> list[PartRow]:
    """The verdict of each part, in the order in which parts first appear; images without a part come last, as REVIEW.

    Args:
        pattern: `data.part`.
        fewest_images: how many every good part has.
    """
    compiled = compile_pattern(pattern, "part")
    parts: dict[str, list[ImageRow]] = {}
    lost: list[ImageRow] = []
    for row in rows:
        part = group_of(path_for_patterns(Path(row["image"])), compiled, "part")
        (parts.setdefault(part, []) if part else lost).append(row)
    known = [_judge(part, images, fewest_images) for part, images in parts.items()]
    unknown = [_judge(row["image"], [row]) for row in lost]
    return known + [_not_ok(row, f"data.part = {pattern!r} finds no part in the image's path") for row in unknown]


def tabulate_parts(predictions: Path, good: GoodScores, category: str | None) -> Counter[str]:
    """How many parts got which verdict, once `parts.csv` lies beside `predictions.csv`.

    None where each image is a part; the table of an earlier run is then removed.
    """
    table = predictions.with_name("parts.csv")
    if good.part is None:
        with writing(table):
            table.unlink(missing_ok=True)
        return Counter()
    rows = part_rows(read_rows(predictions), good.part, good.fewest_images(category))
    with replacing(table) as temporary, temporary.open("w", **ENCODING) as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(field.name for field in fields(PartRow))
        lines.writerows(map(astuple, rows))
    return Counter(row.verdict for row in rows)


def _judge(part: str, images: Sequence[ImageRow], fewest_images: int = 1) -> PartRow:
    worst = max(images, key=lambda row: (_BADNESS[row["verdict"]], _score(row)))
    highest = max(images, key=_score)
    row = PartRow(
        part=part,
        verdict=worst["verdict"] or "REVIEW",
        reason=worst["error"] or worst["reason"],
        score=highest["score"],
        good_share=highest["good_share"],
        images=len(images),
        image=worst["image"],
    )
    if len(images) < fewest_images:
        return _not_ok(row, f"{len(images)} of the {fewest_images} images that good parts have")
    return row


def _not_ok(row: PartRow, reason: str) -> PartRow:
    return replace(row, verdict="REVIEW", reason=reason) if row.verdict == "OK" else row


def _score(row: ImageRow) -> float:
    return float(row["score"]) if row["score"] else float("-inf")
