"""An equal budget of time: how many optimiser steps a method gets for its minutes on this machine."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from threecad.benchmark.plan import Job
from threecad.files import write_json
from threecad.fitting import fit
from threecad.settings_layers import merge
from threecad.training import StepReport

PROBE_STEPS = 12
"""Optimiser steps of the fit that is timed, shared by all phases as in the real one; the first third warms up."""


def steps_within(minutes: float, data: Path, job: Job, folder: Path) -> int:
    """Steps that fill the minutes, at least one; measured once for a run folder, so that it resumes with as many.

    What a method does besides its steps, such as a look at all images, is taken off the minutes.
    """
    file = folder.with_name(f"{folder.name}.budget.json")
    if file.exists():
        return int(json.loads(file.read_text(encoding="utf-8"))["steps"])
    clock = _Clock()
    settings = merge(job.settings, {"training": {"steps": PROBE_STEPS}})
    with tempfile.TemporaryDirectory() as probe:
        fit(job.method, data, Path(probe), categories=job.categories, settings=settings, callback=clock.tick)
    steps = clock.steps_within(60 * minutes)
    write_json(file, {"minutes": minutes, "steps": steps})
    return steps


class _Clock:
    """Seconds between the reports of a fit: those of optimiser steps, and all others."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.step_s: list[float] = []
        self.other_s = 0.0
        self.places = 1

    def tick(self, report: StepReport) -> None:
        before, self.last = self.last, time.monotonic()
        if before is None:  # what came before the first step is no part of the training
            return
        seconds = self.last - before
        self.places = report.detector.places
        if report.rate is None:
            self.other_s += seconds
        else:
            self.step_s.append(seconds)

    def steps_within(self, seconds: float) -> int:
        """Steps of each place that fit into `seconds` beside everything else; a method without steps gets one."""
        warm = self.step_s[len(self.step_s) // 3 :]
        if not warm:
            return 1
        return max(1, int((seconds - self.other_s) / (sum(warm) / len(warm)) / self.places))
