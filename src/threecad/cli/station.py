"""`threecad serve`, `threecad audit` and `threecad replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result

audit = typer.Typer(name="audit", help="The records of a station.", no_args_is_help=True)


def serve(
    folders: Annotated[
        list[Path] | None,
        Argument(metavar="RUN|BUNDLE...", help="What inspects; each is a recipe.", show_default=False),
    ] = None,
    demo: Annotated[bool, Option("--demo", help="A model fitted on drawn parts, and a line that makes them.")] = False,
    host: Annotated[str, Option(metavar="H", help="Address; any but this machine's own needs tokens.")] = "127.0.0.1",
    port: Annotated[int, Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    store: Annotated[Path, Option(metavar="DIR", help="Folder for records and pictures.")] = Path("station"),
    watch: Annotated[
        Path | None, Option(metavar="FOLDER", help="Inspect pictures as they arrive there.", show_default=False)
    ] = None,
    webhook: Annotated[
        str | None, Option(metavar="URL", help="Post every record there, signed.", show_default=False)
    ] = None,
    models: Annotated[
        Path | None,
        Option(
            metavar="FOLDER", help="Runs and bundles that the engineer may put in a recipe's place.", show_default=False
        ),
    ] = None,
    keep_days: Annotated[
        float | None, Option(metavar="N", min=0, help="Days that pictures are kept; records stay.", show_default=False)
    ] = None,
    keep_gb: Annotated[
        float | None, Option(metavar="N", min=0, help="Gigabytes that pictures may take.", show_default=False)
    ] = None,
    places: Annotated[int, Option(metavar="N", min=1, max=32, help="Parts in the station at once.")] = 16,
    deadline: Annotated[float, Option(metavar="S", min=0.01, help="Seconds until a part is REVIEW for time.")] = 10.0,
) -> None:
    """Inspect parts over HTTP, with pages for the people at the line."""
    _require_extra()
    from threecad.station.line import Limits
    from threecad.station.models import Models
    from threecad.station.retention import Keep
    from threecad.station.serving import Address, serve, serve_demo

    if bool(folders) == demo:
        raise typer.BadParameter("expected runs or bundles to serve, or --demo")
    keep = Keep(keep_days, keep_gb)
    if demo and (watch or webhook or models or keep):
        raise typer.BadParameter("--demo makes its own parts; leave out --models, --keep-…, --watch and --webhook")
    if models and not models.is_dir():
        raise typer.BadParameter(f"expected a folder of runs and bundles, found none at {models}")
    limits, address = Limits(places=places, deadline_s=deadline), Address(host, port)
    with interruptible(lambda: f"the records are in {store}"), progress() as shown:
        said = {"tell": result, "notify": shown.notify}
        if demo:
            serve_demo(store, limits, address, progress=counting(shown, "drawing parts"), **said)
        else:
            chosen = Models(models)
            serve(folders or [], store, limits, address, models=chosen, keep=keep, watch=watch, webhook=webhook, **said)


@audit.command()
def verify(
    store: Annotated[Path, Argument(metavar="STORE", help="Folder of a station.", show_default=False)],
) -> None:
    """Check that no record was changed, removed or inserted; exits with 1 where one was."""
    from threecad.station.store import store_faults

    count, head, faults = store_faults(store)
    for fault in faults:
        note(f"threecad: {fault}")
    result(f"{count} records, {len(faults)} faults; the last hash is {head}")
    raise typer.Exit(1 if faults else 0)


@audit.command()
def labelled(
    store: Annotated[Path, Argument(metavar="STORE", help="Folder of a station.", show_default=False)],
    out: Annotated[Path, Option(metavar="ROOT", help="Folder for RECIPE/test/good and RECIPE/test/TYPE.")],
) -> None:
    """Write the pictures that people have answered as a data set, which `evaluate` reads."""
    from threecad.station.feedback import write_labelled

    for place, count in sorted(write_labelled(store, out).items()):
        result(f"{out / place}: {count} images")


def replay(
    store: Annotated[Path, Argument(metavar="STORE", help="Folder of a station.", show_default=False)],
    folder: Annotated[Path, Argument(metavar="RUN|BUNDLE", help="The other model.", show_default=False)],
    out: Annotated[Path, Option(metavar="DIR", help="Folder for changes.csv and index.html.")] = Path("replay"),
    recipe: Annotated[str | None, Option(metavar="NAME", help="Whose parts, in a store of several recipes.")] = None,
    last: Annotated[int, Option(metavar="N", min=1, help="How many parts, the latest ones.")] = 1000,
) -> None:
    """Say which past verdicts another model would change, with pictures, before it goes live."""
    from threecad.station.replay import replay

    with interruptible(lambda: "the store is as it was"), progress() as shown:
        replayed = replay(store, folder, out, recipe=recipe, last=last, progress=counting(shown, "replaying"))
    for kind, count in replayed.kinds.items():
        result(f"{kind}: {count}")
    result(f"{len(replayed.changes)} of {replayed.count} verdicts would change; open {replayed.page}")


def _require_extra() -> None:
    from importlib.util import find_spec

    from threecad.errors import SettingsError

    for name in ("fastapi", "uvicorn", "python_multipart"):
        if find_spec(name) is None:
            raise SettingsError(f"{name} is not installed; `pip install threecad[station]` brings it")
