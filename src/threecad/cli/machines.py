"""The options of commands whose work can be spread over processes and machines."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from typer import Option


class EngineName(StrEnum):
    """What does the work."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[EngineName, Option("--engine", help="This machine's processes, or Ray.")]

Workers = Annotated[int, Option(metavar="N", help="Processes at a time, which share the processors.", min=1)]

Address = Annotated[str | None, Option(metavar="HOST:PORT", help="Ray cluster; a local one without.")]
