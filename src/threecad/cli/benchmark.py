"""`threecad benchmark` and `threecad tables`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result, watching


def benchmark(
    plan: Annotated[Path, Argument(metavar="PLAN.toml", help="Methods, categories, seeds.", show_default=False)],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of runs and rows; what is finished there is skipped.")],
) -> None:
    """Fit and score every method of a plan on every category: one row a run, resumed where it stopped."""
    from threecad.benchmark.plan import read_plan
    from threecad.benchmark.run import run_plan

    asked = read_plan(plan)
    with interruptible(lambda: "go on with the same command"), progress() as shown:
        outcome = run_plan(
            asked,
            out,
            counting=lambda title: counting(shown, title),
            watching=lambda name: watching(shown, name),
            notify=shown.notify,
        )
    result(f"{out}: {len(outcome.done)} done, {len(outcome.skipped)} finished before, {len(outcome.failed)} failed")
    for name, why in outcome.failed.items():
        note(f"{name}: {why}")
    if outcome.failed:
        raise typer.Exit(1)


def tables(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder of a benchmark.", show_default=False)],
) -> None:
    """Print the rows of a benchmark as Markdown tables."""
    from threecad.benchmark.tables import tables as markdown

    result(markdown(folder))
