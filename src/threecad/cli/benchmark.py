"""`threecad benchmark` and `threecad tables`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.machines import Address, EngineName, EngineOption, Workers
from threecad.cli.terminal import interruptible, note, result


class Format(StrEnum):
    """How tables are written."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"


class Selection(StrEnum):
    """Which state of a fit is scored."""

    last = "last"
    best_on_test = "best_on_test"


def benchmark(
    plan: Annotated[
        str,
        Argument(metavar="PLAN.toml", help="A plan, or demo, paper-3cad, paper-mvtec, ablation.", show_default=False),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of runs and rows; what is finished there is skipped.")],
    data: Annotated[Path | None, Option(metavar="ROOT", help="Data root, in place of the plan's.")] = None,
    category: Annotated[
        list[str], Option(metavar="NAME", help="Category, in place of the plan's; again for more.")
    ] = [],  # noqa: B006
    backbone: Annotated[str | None, Option(metavar="TAG|embedded", help="Backbone, in place of the plan's.")] = None,
    pairs: Annotated[list[str], Option("--set", metavar="KEY=VALUE", help="A setting of every method.")] = [],  # noqa: B006
    engine: EngineOption = EngineName.local,
    workers: Workers = 1,
    address: Address = None,
    selection: Annotated[Selection | None, Option(help="Which state of each fit is scored.")] = None,
) -> None:
    """Fit and score every method of a plan on every category: one row a run, resumed where it stopped."""
    from threecad.benchmark.plan import read_plan
    from threecad.benchmark.run import run_plan
    from threecad.engines import Engine
    from threecad.settings_layers import parse_pairs

    chosen = selection.value if selection else None
    changes = {"data": data, "categories": tuple(category), "backbone": backbone, "selection": chosen}
    asked = read_plan(plan, settings=parse_pairs(pairs), **changes)
    machines = Engine(engine.value, workers=workers, address=address)
    with interruptible(lambda: "go on with the same command"):
        outcome = run_plan(asked, out, engine=machines, notify=note)
    result(outcome.summary(out))
    for name, why in outcome.failed.items():
        note(f"{name}: {why}")
    if outcome.failed:
        raise typer.Exit(1)


def tables(
    folders: Annotated[list[Path], Argument(metavar="DIR...", help="Folders of benchmarks.", show_default=False)],
    format: Annotated[Format, Option(help="Markdown, CSV or LaTeX.")] = Format.markdown,
    sheet: Annotated[
        Path | None, Option(metavar="FILE.png|FILE.pdf", help="Also draw a sheet: images, truth, maps (Fig. 5).")
    ] = None,
    methods: Annotated[list[str], Option("--method", metavar="NAME", help="Method on the sheet; again for more.")] = [],  # noqa: B006
) -> None:
    """Print the rows of benchmarks as the paper's Tables 3 to 6."""
    from threecad.benchmark.layouts import write_tables
    from threecad.benchmark.rows import read_rows

    result(write_tables(read_rows(folders), format.value))
    if sheet:
        from threecad.benchmark.sheet import draw_sheet

        draw_sheet(folders, sheet, methods)
        note(f"{sheet}: written")
