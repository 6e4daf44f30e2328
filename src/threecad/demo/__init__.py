"""The whole job on a machine without data: parts are drawn, CFRG learns them, and a page shows what it finds."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threecad.data.loading import Progress
from threecad.demo.parts import CATEGORY, write_parts
from threecad.errors import RunError
from threecad.fitting import fit
from threecad.prediction import predict_files
from threecad.records import GOOD as GOOD_FOLDER
from threecad.report.page import report_run
from threecad.runs import RunFolder
from threecad.training import Callback

TRAIN, GOOD, EACH = 250, 40, 10
"""Good parts to learn from or to keep aside, good ones to test on, and defective ones of each kind."""

STEPS, BATCH, HOLDOUT = 200, 8, 0.4  # 100 good parts kept aside: the highest of them promises 3 %


@dataclass(frozen=True, slots=True)
class Made:
    """What a demo has left."""

    scores: dict[str, Any]
    report: Path
    said: list[str]  # what is promised of good parts, and what became of the tested ones


def run_demo(
    out: Path,
    *,
    counting: Callable[[str], Progress],
    callback: Callback | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Made:
    """A folder with everything that the house makes:

        data/           procedural aluminium covers in the tree of 3CAD
        run/            the fitted CFRG, with scores.json and verdict.toml
        predictions/    verdicts, regions, maps and overlays of the test parts
        report.html     numbers, curves and pictures

    Args:
        counting: gives a callback for the progress of a work with this title.
        callback: called after every step of the fit.
        notify: called with a line worth reading.

    Raises:
        RunError: `out` is not empty.
    """
    _refuse_unless_free(out)
    data, run = out / "data", out / "run"
    write_parts(data, train=TRAIN, good=GOOD, defects=EACH, progress=counting("drawing parts"))
    settings: dict[str, dict[str, Any]] = {
        "data": {"holdout": HOLDOUT},
        "method": {"backbone": "embedded"},
        "training": {"preset": "quick", "steps": STEPS, "batch": BATCH},
    }
    fit("cfrg", data, run, settings=settings, callback=callback, progress=counting("decoding"), notify=notify)
    report = out / "report.html"
    scores = report_run(run, data, file=report, counting=counting)
    found = predict_files(run, [data / CATEGORY / "test"], out / "predictions", progress=counting("judging parts"))
    return Made(scores, report, [*RunFolder(run).read_verdicts().summary(), *_counted(found.table)])


def _counted(table: Path) -> list[str]:
    """How many of the good and of the defective parts got which verdict."""
    counts = {"good": Counter[str](), "defective": Counter[str]()}
    with table.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            is_good = Path(row["image"]).parent.name == GOOD_FOLDER
            counts["good" if is_good else "defective"][row["verdict"]] += 1
    return [
        f"{found.total()} {kind} parts: {', '.join(f'{found[word]} {word}' for word in ('NG', 'REVIEW', 'OK'))}"
        for kind, found in counts.items()
    ]


def _refuse_unless_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / "data" / CATEGORY).is_dir():
        raise RunError(f"{out} holds an earlier demo; remove it with `rm -r {out}`, or choose another --out")
    raise RunError(
        f"expected a new or an empty folder for the demo, found {out} with files already; choose another --out"
    )
