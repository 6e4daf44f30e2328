"""One job of a plan: a fit, its evaluation, its row. Runs in any process that sees the data and the folder."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from threecad.benchmark.budget import steps_within
from threecad.benchmark.keys import key_id
from threecad.benchmark.plan import Job, Plan
from threecad.benchmark.selection import BestOnTest
from threecad.benchmark.sheet import write_maps
from threecad.data.readers import read_category
from threecad.errors import RunError, ThreeCADError
from threecad.evaluation import evaluate_run
from threecad.files import write_json
from threecad.fitting import fit
from threecad.report.sheet import SheetParts
from threecad.runs import RunFolder
from threecad.settings_layers import merge


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job went."""

    name: str
    seconds: float
    failure: str | None = None  # why there is no row
    trace: str | None = None  # of a failure that is a fault of ours


def run_job(plan: Plan, job: Job, out: Path) -> Outcome:
    """Fit, score, and leave the row of a job whose key is known; what was interrupted resumes."""
    start = time.monotonic()
    _hush()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # an earlier job of this process may have changed it
    try:
        row = _row(plan, job, out)
        write_json(out / "rows" / f"{job.name}.json", row)
    except ThreeCADError as error:
        return Outcome(job.name, time.monotonic() - start, str(error))
    except Exception as error:  # one method's fault must not cost the others their night
        return Outcome(
            job.name, time.monotonic() - start, f"{type(error).__name__}: {error}", traceback.format_exc().rstrip()
        )
    return Outcome(job.name, time.monotonic() - start)


def _hush() -> None:
    """Silence what libraries say of themselves in a process that has no command line."""
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _row(plan: Plan, job: Job, out: Path) -> dict[str, Any]:
    assert plan.data is not None
    folder = out / "runs" / f"{job.name}-{key_id(job.key)}"
    settings = job.settings
    if plan.budget and plan.budget.minutes:
        steps = steps_within(plan.budget.minutes, plan.data, job, folder)
        settings = merge(settings, {"training": {"steps": steps}})
    best = BestOnTest(plan.data, job, folder) if job.selection == "best_on_test" else None
    _fit(plan.data, job, settings, folder, best)
    if best:
        best.put_in_place()
    parts = SheetParts(read_category(plan.data, name).test for name in job.categories)
    scores = evaluate_run(folder, plan.data, job.categories, on_image=parts.add)
    if best:
        scores = best.described(scores)
    write_maps(out / "maps" / f"{job.name}.npz", parts.maps)
    about = {"variant": job.variant, "selection": job.selection, "data_set": plan.data_set, "key": job.key}
    return {**scores, "benchmark": about}


def _fit(data: Path, job: Job, settings: Any, folder: Path, best: BestOnTest | None) -> None:
    """A finished run in `folder`; one that was interrupted where it cannot go on exactly starts again."""
    was_started = RunFolder(folder).is_started
    if folder.exists() and not was_started:
        shutil.rmtree(folder)  # what a kill has left of a run before it was described
    try:
        _fit_on(data, job, settings, folder, best)
    except RunError:
        if not was_started:
            raise
        shutil.rmtree(folder)
        if best:
            best.forget()
        _fit_on(data, job, settings, folder, best)


def _fit_on(data: Path, job: Job, settings: Any, folder: Path, best: BestOnTest | None) -> None:
    callback = best.look if best else None
    fit(job.method, data, folder, categories=job.categories, settings=settings, resume=True, callback=callback)
