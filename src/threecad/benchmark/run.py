"""Runs a plan on this machine, job by job: what is finished is skipped, what was interrupted resumes.

DIR/plan.json                         the plan that the folder belongs to
    runs/METHOD/CATEGORY/SEED/        the run folder of each job
    rows/METHOD/CATEGORY/SEED.json    its scores.json, written last: the row is there, or the job is not done
    failures/METHOD/CATEGORY/SEED.txt why a job failed; tried again next time
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from threecad.benchmark.plan import Job, Plan
from threecad.data.loading import Progress
from threecad.errors import RunError, ThreeCADError
from threecad.evaluation import evaluate_run
from threecad.files import write_json, write_text
from threecad.fitting import fit
from threecad.training import Callback

COMPARABLE = ("backbone", "override", "settings")
"""What two plans must agree on for their rows to stand in one table."""


@dataclass
class Outcome:
    """How a benchmark went."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # finished before
    failed: dict[str, str] = field(default_factory=dict)  # why, by job


def run_plan(
    plan: Plan,
    out: Path,
    *,
    counting: Callable[[str], Progress],
    watching: Callable[[str], Callback],
    notify: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Every job of the plan, its row in `out`; a job that fails does not stop the others.

    Args:
        counting: gives a callback for the progress of a work with this title.
        watching: gives a callback for the steps of a job with this name.
        notify: called with a line worth reading.

    Raises:
        RunError: `out` holds something else, or cannot be written.
        Interrupted: Ctrl-C; the same command goes on.
    """
    _claim(out, plan)
    outcome = Outcome()
    jobs = list(plan.jobs())
    for number, job in enumerate(jobs, start=1):
        row = row_file(out, job)
        if row.exists():
            outcome.skipped.append(job.name)
            continue
        notify(f"[{number}/{len(jobs)}] {job.name}")
        failure = out / "failures" / f"{job.name}.txt"
        try:
            scores = _run(plan, job, out / "runs" / job.name, counting, watching)
        except ThreeCADError as error:
            outcome.failed[job.name] = str(error)
        except Exception as error:  # one method's fault must not cost the others their night
            outcome.failed[job.name] = f"{type(error).__name__}: {error}"
            failure.parent.mkdir(parents=True, exist_ok=True)
            write_text(failure, traceback.format_exc())
        else:
            row.parent.mkdir(parents=True, exist_ok=True)
            write_json(row, scores)
            failure.unlink(missing_ok=True)
            outcome.done.append(job.name)
    return outcome


def row_file(out: Path, job: Job) -> Path:
    """Where the row of a job lies."""
    return out / "rows" / f"{job.name}.json"


def _run(
    plan: Plan, job: Job, folder: Path, counting: Callable[[str], Progress], watching: Callable[[str], Callback]
) -> object:
    """`scores.json` of one job."""
    fit(
        job.method,
        plan.data,
        folder,
        categories=job.categories,
        settings=job.settings,
        resume=True,
        callback=watching(job.name),
        progress=counting(f"decoding {job.categories[0]}"),
    )
    return evaluate_run(folder, plan.data, job.categories, counting=counting)


def _claim(out: Path, plan: Plan) -> None:
    """Make the folder, or make sure that it belongs to a plan whose rows can stand beside this one's."""
    file = out / "plan.json"
    asked = json.loads(plan.model_dump_json(include=set(COMPARABLE)))
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in COMPARABLE:
            if before.get(key) != asked[key]:
                raise RunError(
                    f"{out} belongs to a plan with {key} = {json.dumps(before.get(key))},\n"
                    f"this one has {json.dumps(asked[key])}: rows would not be comparable; choose another --out"
                )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"expected a new folder or one of a benchmark, found {out} with other files; choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror}") from None
    write_json(file, asked)
