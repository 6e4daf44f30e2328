"""`threecad predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result


def predict(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)],
    inputs: Annotated[
        list[Path],
        Argument(metavar="IMAGE|FOLDER...", help="Images, and folders of images at any depth.", show_default=False),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder for maps, overlays and predictions.csv.")],
) -> None:
    """Look for defects in images: maps, overlays and predictions.csv, at each image's own size.

    Exits with 1 where some images could not be read; they are listed, and the others are done.
    """
    from threecad.prediction import predict_files

    with interruptible(lambda: "maps so far are kept, predictions.csv is not written"), progress() as shown:
        summary = predict_files(run, inputs, out, counting(shown, "predicting"))
    for error in summary.errors:
        note(f"threecad: {error}")
    if not summary.has_good_share:
        note("good_share is empty: the run kept no good parts aside; fit with --set data.holdout=0.1 for it")
    failed = f", {len(summary.errors)} failed" if summary.errors else ""
    result(f"{summary.table}: {summary.count} images{failed}")
    raise typer.Exit(1 if summary.errors else 0)
