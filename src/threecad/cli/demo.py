"""`threecad demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from threecad.cli.evaluate import print_scores
from threecad.cli.terminal import counting, interruptible, progress, result, watching


def demo(
    out: Annotated[Path, Option(metavar="DIR", help="Folder to make.")] = Path("runs/demo"),
) -> None:
    """The whole job on procedural parts: fit CFRG, score it, judge parts; leave maps, overlays and report.html."""
    from threecad.demo import run_demo

    with interruptible(lambda: f"remove {out} before the next try"), progress() as shown:
        made = run_demo(
            out, counting=lambda title: counting(shown, title), callback=watching(shown), notify=shown.notify
        )
    print_scores(made.scores)
    for line in made.said:
        result(line)
    result(f"open {made.report}")
