"""`threecad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, table

COLUMNS = {
    "I-AUROC": "i_auroc",
    "P-AUROC": "p_auroc",
    "P-PRO": "p_pro",
    "P-PRO per image": "p_pro_per_image",
    "P-AP": "p_ap",
    "I-AP": "i_ap",
    "P-F1": "p_f1_max",
    "I-F1": "i_f1_max",
    "FPR at 95 % TPR": "fpr_at_95_tpr",
}


def evaluate(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)],
    data: Annotated[Path, Option(metavar="ROOT", help="Data root, or category folder.")],
    category: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Category to score on; again for more.", show_default="those of the run"),
    ] = None,
) -> None:
    """Score a run on test images: writes RUN/scores.json, prints the table in per cent."""
    from threecad.scoring import score_run

    with interruptible(lambda: "nothing was written"), progress() as shown:
        scores = score_run(run, data, category or (), counting=lambda title: counting(shown, title))
    print_scores(scores)


def print_scores(scores: dict[str, Any]) -> None:
    """The table of one `scores.json`: a line a category, and their mean where there are several."""
    rows = dict(scores["categories"]) if "categories" in scores else {scores["category"]: scores}
    if "mean" in scores:
        rows["mean"] = scores["mean"]
    table(
        ["", *COLUMNS],
        [[str(name), *(_per_cent(values[key]) for key in COLUMNS.values())] for name, values in rows.items()],
    )
    for name, values in rows.items():
        if values["p_auroc"] is None and name != "mean":
            note(f"'{name}' has no masks: image metrics only")
        if values.get("n_vanished"):
            note(f"'{name}': {values['n_vanished']} defects vanish at the evaluation's size and leave P-PRO")


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
