"""`threecad predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.machines import Address, EngineName, EngineOption, Workers
from threecad.cli.terminal import counting, interruptible, note, progress, result


def predict(
    run: Annotated[
        Path, Argument(metavar="RUN|BUNDLE", help="Run folder of a fit, or bundle of an export.", show_default=False)
    ],
    inputs: Annotated[
        list[Path],
        Argument(metavar="IMAGE|FOLDER...", help="Images, and folders of images at any depth.", show_default=False),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder for maps, overlays and predictions.csv.")],
    resume: Annotated[bool, Option("--resume", help="Keep finished rows, go on with the others.")] = False,
    no_maps: Annotated[bool, Option("--no-maps", help="Write no maps.")] = False,
    no_overlays: Annotated[bool, Option("--no-overlays", help="Write no overlays.")] = False,
    batch: Annotated[int, Option(metavar="N", min=1, help="Images that go through the network together.")] = 8,
    device: Annotated[str | None, Option(metavar="D", help="cpu, cuda, …; the best one without.")] = None,
    precision: Annotated[str | None, Option(metavar="P", help="float32 or bf16; the fit's without.")] = None,
    category: Annotated[
        str | None, Option(metavar="NAME", help="Whose good parts to compare with, in a run of several.")
    ] = None,
    max_pixels: Annotated[
        int | None, Option(metavar="N", min=1, help="Pixels of the largest image that is read; the fit's without.")
    ] = None,
    engine: EngineOption = EngineName.local,
    workers: Workers = 1,
    address: Address = None,
) -> None:
    """Say OK, REVIEW or NG of each image: predictions.csv, regions.jsonl, maps and overlays, at each image's own size.

    Exits with 1 where some images could not be inspected; they are listed, and the others are done.
    """
    from threecad.engines import Engine
    from threecad.prediction import predict_files

    machines = Engine(engine.value, workers=workers, address=address)
    with interruptible(lambda: "go on with the same command and --resume"), progress() as shown:
        summary = predict_files(
            run,
            inputs,
            out,
            resume=resume,
            maps=not no_maps,
            overlays=not no_overlays,
            batch=batch,
            device=device,
            precision=precision,
            category=category,
            max_pixels=max_pixels,
            engine=machines if machines != Engine() else None,
            progress=counting(shown, "predicting"),
            notify=shown.notify,
        )
    for error in summary.errors:
        note(f"threecad: {error}")
    if not summary.can_judge:
        note(f"nothing can be OK without good parts to compare with: add some with `threecad calibrate {run} FOLDER`")
    verdicts = ", ".join(f"{summary.verdicts[word]} {word}" for word in ("OK", "REVIEW", "NG"))
    failed = f", {len(summary.errors)} failed" if summary.errors else ""
    result(f"{summary.table}: {summary.count} images: {verdicts}{failed}")
    if summary.parts:
        of_parts = ", ".join(f"{summary.parts[word]} {word}" for word in ("OK", "REVIEW", "NG"))
        result(f"{summary.table.with_name('parts.csv')}: {summary.parts.total()} parts: {of_parts}")
    raise typer.Exit(1 if summary.errors else 0)
