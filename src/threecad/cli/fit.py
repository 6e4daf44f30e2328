"""`threecad fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from threecad.cli.terminal import clock, counting, interruptible, progress, result, watching

Method = Annotated[str, Argument(metavar="METHOD", help="See `threecad methods`.", show_default=False)]
Root = Annotated[Path, Option(metavar="ROOT", help="Data root, category folder, or plain folder of good images.")]
Run = Annotated[Path, Option(metavar="RUN", help="Run folder to make.")]
Categories = Annotated[list[str], Option(metavar="NAME", help="Category to learn; again for more.")]
Preset = Annotated[
    str | None, Option(metavar="paper|quick", help="The publication's schedule, or minutes on two cores.")
]
Backbone = Annotated[str | None, Option(metavar="TAG|embedded", help="Pretrained network to look through.")]
Seed = Annotated[int | None, Option(metavar="N", help="Seed of everything random.")]
Config = Annotated[Path | None, Option(metavar="FILE.toml", help="Settings file.")]
Pairs = Annotated[
    list[str], Option("--set", metavar="KEY=VALUE", help="A setting: training.steps=500; again for more.")
]
Resume = Annotated[bool, Option("--resume", help="Go on with an interrupted fit, exactly.")]
Inexact = Annotated[bool, Option("--inexact", help="Resume even where it cannot be exact.")]


def fit(
    method: Method,
    data: Root,
    out: Run,
    category: Categories = [],  # noqa: B006 – Typer's way of saying "any number"
    preset: Preset = None,
    backbone: Backbone = None,
    seed: Seed = None,
    config: Config = None,
    pairs: Pairs = [],  # noqa: B006
    resume: Resume = False,
    inexact: Inexact = False,
) -> None:
    """Learn what good parts look like, and leave a run folder."""
    from threecad import fitting
    from threecad.methods import METHODS
    from threecad.runs import RunFolder
    from threecad.settings_layers import merge, parse_pairs, read_settings

    named = _tables(("training.preset", preset), ("method.backbone", backbone), ("training.seed", seed))
    settings = merge(read_settings(config, METHODS[method].Config) if config else {}, parse_pairs(pairs), named)
    run = RunFolder(out)
    with interruptible(lambda: _how_to_go_on(run.record_file)), progress() as shown:
        fitting.fit(
            method,
            data,
            out,
            categories=category,
            settings=settings,
            resume=resume,
            inexact=inexact,
            callback=watching(shown),
            progress=counting(shown, "decoding"),
            notify=shown.notify,
        )
    record = run.read_record()
    result(f"{out}: {method} has learnt {', '.join(record.categories)} in {clock(record.duration_s)}")
    advice = [METHODS[method].advice] if record.preset == "quick" and METHODS[method].advice else []
    for line in (*record.choices, *run.read_verdicts().summary(), *advice):
        result(line)


def _tables(*options: tuple[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of the options that were given."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in options:
        if value is not None:
            table, _, key = name.partition(".")
            tables.setdefault(table, {})[key] = value
    return tables


def _how_to_go_on(record_file: Path) -> str:
    return "go on with the same command and --resume" if record_file.exists() else "nothing was written"
