"""The command line: one short file a command group, and no logic.

Exit codes: 0 done · 1 some images failed, each listed · 2 something that the user can mend · 130 interrupted. Results
go to standard output, everything else to standard error. What a command needs is imported when it runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from threecad.allocation import keep_freed_memory
from threecad.cli import (
    benchmark,
    data,
    demo,
    evaluate,
    export,
    fit,
    methods,
    predict,
    settings,
    show,
    station,
    verdict,
    weights,
)
from threecad.cli.terminal import is_quiet, prepare_streams
from threecad.errors import ThreeCADError
from threecad.threads import give_way

TRAINING = ("torch", "torchvision", "timm", "lightning_fabric", "safetensors", "jinja2", "FrEIA")
"""Packages that a line's PC goes without."""

COMPUTING = frozenset(("benchmark", "calibrate", "demo", "evaluate", "export", "fit", "predict", "replay", "verify"))
"""Commands that look at the load before they choose how many threads compute; `serve` outlives what it would see."""

UNWRAPPED = 10_000  # columns of a help text that goes into a file or another program

app = typer.Typer(
    name="threecad",
    help="Find defects in industrial parts from pictures of good ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(fit.fit)
app.command()(evaluate.evaluate)
app.command()(predict.predict)
app.command()(verdict.verdict)
app.command()(verdict.calibrate)
app.command()(export.export)
app.command()(export.verify)
app.command()(show.show)
app.add_typer(data.app)
app.command()(benchmark.benchmark)
app.command()(benchmark.tables)
app.command()(methods.methods)
app.command()(settings.settings)
app.add_typer(weights.app)
app.command()(station.serve)
app.command()(station.replay)
app.add_typer(station.audit)


def main() -> NoReturn:
    """Run the command that `sys.argv` asks for, and exit with its code."""
    prepare_streams()
    _hush()
    code: int | str | None = 0
    if not COMPUTING.isdisjoint(sys.argv[1:2]) and "--help" not in sys.argv:
        give_way()
    try:
        context = {} if sys.stdout.isatty() else {"terminal_width": UNWRAPPED, "max_content_width": UNWRAPPED}
        app(prog_name="threecad", **context)
    except ThreeCADError as error:
        code = 2
        if not is_quiet():
            print(f"threecad: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        code = 2
        print(f"threecad: this needs {error.name}; install it with: pip install 'threecad[train]'", file=sys.stderr)
    except SystemExit as stop:
        code = stop.code
    except BrokenPipeError:
        code = 1
    sys.exit(_flushed(code))


def _show_version(requested: bool) -> None:
    if requested:
        import importlib.metadata

        print(importlib.metadata.version("threecad"))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand != "serve":  # a service gives memory back that it does not need
        keep_freed_memory()


def _hush() -> None:
    """Silence what libraries say of themselves: every line that a command prints is its own."""
    for chatter in ("rank_zero", "distributed"):
        logging.getLogger(f"lightning_fabric.utilities.{chatter}").setLevel(logging.ERROR)
    if not sys.warnoptions:  # -W and PYTHONWARNINGS show them again
        warnings.simplefilter("ignore")


def _flushed(code: int | str | None) -> int | str | None:
    """`code`, after what was printed has reached its reader; a reader that has gone away is no reason to complain."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
