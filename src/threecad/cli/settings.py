"""`threecad settings`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from threecad.cli.terminal import result


def settings(
    method: Annotated[str, Argument(metavar="METHOD", help="See `threecad methods`.", show_default=False)],
    preset: Annotated[str, Option(metavar="paper|quick", help="Whose values to print.")] = "paper",
) -> None:
    """Print every setting of a method, with help and default, as a TOML file for `fit --config`."""
    from threecad.settings_file import settings_file

    result(settings_file(method, preset).rstrip("\n"))
