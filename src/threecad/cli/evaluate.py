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
    beside: Annotated[
        list[Path], Option(metavar="RUN", help="A run whose maps stand in the report, too; again for more.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for scores.json and report, instead of RUN.")
    ] = None,
    device: Annotated[str | None, Option(metavar="D", help="cpu, cuda, …; the best one without.")] = None,
    precision: Annotated[str | None, Option(metavar="P", help="float32 or bf16; the fit's without.")] = None,
) -> None:
    """Score a run on test images: writes RUN/scores.json, prints the table in per cent."""
    from threecad.errors import SettingsError
    from threecad.evaluation import evaluate_run
    from threecad.report.page import report_run

    if beside and not report:
        raise SettingsError("--beside is of the report: add --report")
    place = out or run
    with interruptible(lambda: "nothing was written"), progress() as shown:
        options: dict[str, Any] = {
            "out": place / "scores.json",
            "device": device,
            "precision": precision,
            "counting": lambda title: counting(shown, title),
            "notify": shown.notify,
        }
        if report:
            scores = report_run(run, data, category, file=place / "report.html", beside=beside, **options)
        else:
            scores = evaluate_run(run, data, category, **options)
    print_scores(scores)
    if report:
        result(f"open {place / 'report.html'}")


def print_scores(scores: dict[str, Any]) -> None:
    """The table of one `scores.json`: a line a category, and their mean where there are several."""
    from threecad.evaluation import TITLES

    rows = list(scores["categories"].items()) if "categories" in scores else [(scores["category"], scores)]
    mean = [("mean", scores["mean"])] if "mean" in scores else []
    cells = [[name, *(_per_cent(values[key]) for key in TITLES)] for name, values in rows + mean]
    table(["", *TITLES.values()], cells)
    for name, values in rows:
        if values["p_auroc"] is None:
            note(f"'{name}' has no masks with a defect in them: image metrics only")
        if values["i_auroc"] is None:
            note(f"'{name}' has no good test images: pixel metrics only")
        if values["n_vanished"]:
            note(f"'{name}': {values['n_vanished']} defects vanish at the evaluation's size and leave P-PRO")


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
