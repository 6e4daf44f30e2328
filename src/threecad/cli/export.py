"""`threecad export` and `threecad verify`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from threecad.cli.terminal import interruptible, note, result

if TYPE_CHECKING:
    from threecad.runtime.proof import Proof


class Format(StrEnum):
    """What the exported detector runs in."""

    onnx = "onnx"
    openvino = "openvino"


def export(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)],
    format: Annotated[Format, Option(help="For ONNX Runtime, or for OpenVINO.", show_default=False)],
    out: Annotated[Path, Option(metavar="BUNDLE", help="Folder for the bundle, new or empty.")],
    data: Annotated[
        Path | None, Option(metavar="ROOT", help="Data root of the fit: the proof's parts; drawn ones without.")
    ] = None,
    good: Annotated[
        list[Path],
        Option(metavar="FOLDER", help="Good parts of a calibration, if they are scored again; again for more."),
    ] = [],  # noqa: B006
    precision: Annotated[str, Option(metavar="P", help="float32, the only one that passes its proof.")] = "float32",
    with_wheels: Annotated[
        bool, Option("--with-wheels", help="Add what a PC without internet has to install; asks the package index.")
    ] = False,
    no_pictures: Annotated[bool, Option("--no-pictures", help="Let no pictures of parts travel along.")] = False,
) -> None:
    """Make a bundle that finds defects on a PC without torch, and prove that its verdicts are the run's.

    Exits with 2, and writes nothing, where a verdict differs.
    """
    from threecad.export.bundling import export_run

    with interruptible(lambda: "no bundle was written"):
        proof = export_run(
            run,
            out,
            format.value,
            data=data,
            good=good,
            precision=precision,
            pictures=not no_pictures,
            wheels=with_wheels,
            notify=note,
        )
    _print(proof)
    if with_wheels:
        result(f"{out / 'wheels' / 'INSTALL.txt'} says how to install it without internet")
    result(f"{out}: proved; run `threecad verify {out}` where it is to work")


def verify(
    bundle: Annotated[Path, Argument(metavar="BUNDLE", help="Folder of an export.", show_default=False)],
    pictures: Annotated[
        Path | None, Argument(metavar="FOLDER", help="Pictures of its proof; those inside it without.")
    ] = None,
) -> None:
    """Repeat a bundle's proof on this machine. Exits with 2 where a verdict differs from the trained detector's."""
    from threecad.runtime.verification import verify as repeat

    with interruptible(lambda: "nothing was verified"):
        proof = repeat(bundle, pictures)
    _print(proof)
    result(f"{bundle}: its verdicts are the trained detector's on all {len(proof.images)} pictures")


def _print(proof: Proof) -> None:
    lines = proof.summary()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        result(f"{name.ljust(width)}  {value}")
