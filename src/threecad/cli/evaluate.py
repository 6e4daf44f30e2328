"""`threecad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result, table


def evaluate(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)],
    data: Annotated[Path, Option(metavar="ROOT", help="Data root, or category folder.")],
    category: Annotated[
        list[str], Option(metavar="NAME", help="Category to score on, instead of the run's; again for more.")
    ] = [],  # noqa: B006
    report: Annotated[bool, Option("--report", help="Write RUN/report.html with pictures, too.")] = False,
) -> None:
    """Score a run on test images: writes RUN/scores.json, prints the table in per cent."""
    from threecad.report.page import report_run
    from threecad.scoring import score_run

    work = report_run if report else score_run
    with interruptible(lambda: "nothing was written"), progress() as shown:
        scores = work(run, data, category, counting=lambda title: counting(shown, title))
    print_scores(scores)
    if report:
        result(f"open {run / 'report.html'}")


def print_scores(scores: dict[str, Any]) -> None:
    """The table of one `scores.json`: a line a category, and their mean where there are several."""
    from threecad.scoring import TITLES

    rows = dict(scores["categories"]) if "categories" in scores else {scores["category"]: scores}
    if "mean" in scores:
        rows["mean"] = scores["mean"]
    cells = [[name, *(_per_cent(values[key]) for key in TITLES)] for name, values in rows.items()]
    table(["", *TITLES.values()], cells)
    for name, values in rows.items():
        if values["p_auroc"] is None and name != "mean":
            note(f"'{name}' has no masks: image metrics only")
        if values.get("n_vanished"):
            note(f"'{name}': {values['n_vanished']} defects vanish at the evaluation's size and leave P-PRO")


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
