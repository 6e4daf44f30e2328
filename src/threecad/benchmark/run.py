"""Runs a plan: what is finished is skipped, what was interrupted resumes, what was made otherwise is set aside.

DIR/plan.json                          the plan that was run last
    rows/METHOD/CATEGORY/SEED.json     the scores of a job, written last: the row is there, or the job is not done
    superseded/…/SEED-ID.json          rows whose code, settings or data are no longer the plan's; they come back
    runs/METHOD/CATEGORY/SEED-ID/      the run folder of a job; ID stands for the key of its row
    maps/METHOD/CATEGORY/SEED.npz      a few test images with their maps, for the sheet
    failures/METHOD/CATEGORY/SEED.txt  why a job failed; it is tried again next time
    tables.md, tables.csv, tables.tex, sheet.png
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from threecad.benchmark.job import Outcome, run_job
from threecad.benchmark.keys import code_version, key_id, with_keys
from threecad.benchmark.layouts import FORMATS, write_tables
from threecad.benchmark.plan import Job, Plan
from threecad.benchmark.rows import read_key, read_rows
from threecad.benchmark.sheet import draw_sheet
from threecad.demo.parts import write_parts
from threecad.engines import Engine, map_tasks
from threecad.errors import RunError
from threecad.files import is_leftover, sweep, whole_files, write_json, write_text, writing

SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}


@dataclass
class Report:
    """How a benchmark went; every job's name is in one of the first three."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # finished before
    failed: dict[str, str] = field(default_factory=dict)  # why, by job
    superseded: list[str] = field(default_factory=list)  # rows that were set aside

    def summary(self, out: Path) -> str:
        """One line."""
        aside = f", {len(self.superseded)} of other code, settings or data set aside" if self.superseded else ""
        counts = f"{len(self.done)} done, {len(self.skipped)} finished before, {len(self.failed)} failed{aside}"
        return f"{out}: {counts}"


def run_plan(
    plan: Plan,
    out: Path,
    *,
    engine: Engine | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Report:
    """Every job of the plan, its row in `out`; a job that fails does not stop the others.

    Args:
        notify: called with a line worth reading: when work begins, and when a job has ended, with the time left.

    Raises:
        RunError: `out` holds something else, is at work already, or cannot be written; the cluster does not answer.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    _claim(out, plan)
    with _alone(out):
        for folder in (out, *(out / name for name in ("rows", "superseded", "maps", "failures"))):
            sweep(folder, at_any_depth=folder != out)
        plan = _with_parts(plan, out, notify)
        jobs = with_keys(plan)
        report = Report(superseded=_set_aside(out, jobs))
        waiting = []
        for job in jobs:
            if read_key(row_file(out, job)) == job.key:
                report.skipped.append(job.name)
            else:
                waiting.append(job)
        if waiting:
            notify(f"{len(waiting)} of {len(jobs)} jobs to run")
        start = time.monotonic()
        for number, ended in enumerate(map_tasks(partial(run_job, plan, out=out), waiting, engine), start=1):
            outcome = ended.result or Outcome(waiting[ended.index].name, 0.0, ended.failure)
            _note(out, outcome, report)
            left_s = (time.monotonic() - start) / number * (len(waiting) - number)
            notify(_line(outcome, number, len(waiting), left_s))
        _print_tables(out)
    return report


def row_file(out: Path, job: Job) -> Path:
    """Where the row of a job lies."""
    return out / "rows" / f"{job.name}.json"


def _claim(out: Path, plan: Plan) -> None:
    """Make the folder, or make sure that it is one of a benchmark; then write down what is run in it."""
    if out.exists() and not (out.is_dir() and ((out / "plan.json").exists() or all(map(is_leftover, out.iterdir())))):
        raise RunError(
            f"expected a new folder or one of a benchmark, found {out} with other files; choose another --out"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / "plan.json", json.loads(plan.model_dump_json(exclude_none=True)))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Within, no other benchmark works in the folder; the system lets go of the lock however this process ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another benchmark is at work in {out}; wait for it, or choose another --out") from None
        yield


def _with_parts(plan: Plan, out: Path, notify: Callable[[str], None]) -> Plan:
    """The plan with a data root; its parts are drawn where it has none, all of them or none at all."""
    if plan.parts is None or plan.data is not None:
        return plan
    data = out / "data"
    if not data.exists():
        notify("drawing parts")
        unfinished = out / "data.part"
        write_parts(unfinished, **plan.parts.model_dump())
        unfinished.rename(data)
    return plan.model_copy(update={"data": data.resolve()})


def _set_aside(out: Path, jobs: Sequence[Job]) -> list[str]:
    """Names of rows that no longer belong into the tables, moved to `superseded`; those that belong again come back.

    A row belongs if it is one of the plan's, or of a method and variant that the plan leaves out, by the present code.
    """
    by_name = {job.name: job for job in jobs}
    lines = {job.line for job in jobs}
    aside = []
    for file in whole_files(out / "rows", ".json"):
        name = file.relative_to(out / "rows").with_suffix("").as_posix()
        key = read_key(file)
        if name in by_name:
            belongs = key == by_name[name].key
        else:
            belongs = key is not None and name.split("/")[0] not in lines and key["code"] == code_version()
        if not belongs:
            _move(file, _superseded(out, name, key_id(key) if key else "damaged"))
            aside.append(name)
    for job in jobs:
        kept = _superseded(out, job.name, key_id(job.key))
        if read_key(kept) == job.key and not row_file(out, job).exists():
            _move(kept, row_file(out, job))
    return aside


def _superseded(out: Path, name: str, identity: str) -> Path:
    return out / "superseded" / f"{name}-{identity}.json"


def _move(file: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _note(out: Path, outcome: Outcome, report: Report) -> None:
    """Enter a job's end into the report, and into its file where it failed."""
    file = out / "failures" / f"{outcome.name}.txt"
    if outcome.failure is None:
        report.done.append(outcome.name)
        file.unlink(missing_ok=True)
        return
    report.failed[outcome.name] = outcome.failure
    write_text(file, (outcome.trace or outcome.failure) + "\n")


def _line(outcome: Outcome, number: int, total: int, left_s: float) -> str:
    how = f"{outcome.seconds:.0f} s" if outcome.failure is None else f"failed: {outcome.failure}"
    left = f", about {max(1, round(left_s / 60))} min left" if number < total else ""
    return f"[{number}/{total}] {outcome.name}: {how}{left}"


def _print_tables(out: Path) -> None:
    """The tables in every format, and the sheet, beside the rows; nothing where no job was finished."""
    if not whole_files(out / "rows", ".json"):
        return
    rows = read_rows([out])
    for name in FORMATS:
        write_text(out / f"tables.{SUFFIXES[name]}", write_tables(rows, name) + "\n")
    if whole_files(out / "maps", ".npz"):
        draw_sheet([out], out / "sheet.png")
