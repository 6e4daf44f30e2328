"""`threecad weights`: pretrained backbones on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import note, result, table

app = typer.Typer(name="weights", help="Pretrained backbones on this machine.", no_args_is_help=True)


@app.command("list")
def list_weights() -> None:
    """What the cache holds."""
    from threecad.cache import cache_folder
    from threecad.nets.shipped_weights import SHIPPED
    from threecad.nets.weights import cached_weights
    from threecad.settings import EMBEDDED

    cached = cached_weights()
    table(
        ("TAG", "MB", "SHA-256"),
        [(tag, f"{file.path.stat().st_size / 1e6:.1f}", file.sha256) for tag, file in cached.items()],
    )
    for name, tag in EMBEDDED.items():
        if tag not in cached:
            note(f"{tag} comes with {SHIPPED[tag].package} (--backbone {name})")
    note(f"cache: {cache_folder('weights')}")


@app.command()
def fetch(tag: Annotated[str, Argument(metavar="TAG", help="Full timm tag.", show_default=False)]) -> None:
    """Download a backbone's weights into the cache: the only command that uses the internet."""
    from threecad.nets.weights import fetch_weights

    _report(tag, fetch_weights(tag).path)


@app.command("import")
def import_file(
    file: Annotated[Path, Argument(metavar="FILE", help="A .pth or .safetensors file.", show_default=False)],
    tag: Annotated[
        str | None, Option(metavar="TAG", help="Full timm tag.", show_default="told by the file's name")
    ] = None,
) -> None:
    """Bring a weight file into the cache; nothing in it is run."""
    from threecad.nets.weights import import_weights, tag_of

    tag = tag or tag_of(file)
    _report(tag, import_weights(file, tag).path)


def _report(tag: str, path: Path) -> None:
    result(f"{tag}: {path}")
