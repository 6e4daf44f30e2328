"""The whole job on a machine without data: parts are drawn, CFRG learns them, and a page shows what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threecad.data.loading import Progress
from threecad.demo.parts import CATEGORY, write_parts
from threecad.errors import RunError
from threecad.fitting import fit
from threecad.prediction import predict_files
from threecad.report.page import report_run
from threecad.training import Callback

TRAIN, GOOD, EACH = 160, 40, 10
"""Parts to learn from, good ones to test on, and defective ones of each kind."""

STEPS, BATCH, HOLDOUT = 200, 8, 0.1


@dataclass(frozen=True, slots=True)
class Made:
    """What a demo has left."""

    scores: dict[str, Any]
    report: Path


def run_demo(
    out: Path,
    *,
    counting: Callable[[str], Progress],
    callback: Callback | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Made:
    """A folder with everything that the house makes:

        data/           procedural aluminium covers in the tree of 3CAD
        run/            the fitted CFRG, with scores.json
        predictions/    maps, overlays and predictions.csv of the test parts
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
    predict_files(run, [data / CATEGORY / "test"], out / "predictions", progress=counting("maps and overlays"))
    return Made(scores, report)


def _refuse_unless_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / "data" / CATEGORY).is_dir():
        raise RunError(f"{out} holds an earlier demo; remove it with `rm -r {out}`, or choose another --out")
    raise RunError(
        f"expected a new or an empty folder for the demo, found {out} with files already; choose another --out"
    )
