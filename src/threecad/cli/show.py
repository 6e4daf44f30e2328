"""`threecad show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from threecad.cli.terminal import result


def show(run: Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)]) -> None:
    """Say what a run is: method, chosen settings, data, state and versions."""
    from threecad.run_summary import run_summary

    for line in run_summary(run):
        result(line)
