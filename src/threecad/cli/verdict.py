"""`threecad verdict` and `threecad calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result, table

Run = Annotated[Path, Argument(metavar="RUN", help="Run folder of a fit.", show_default=False)]
Category = Annotated[str | None, Option(metavar="NAME", help="Whose good parts, in a run of several categories.")]


def verdict(
    folder: Annotated[Path, Argument(metavar="RUN|BUNDLE", help="Folder of a fit or an export.", show_default=False)],
    review_at: Annotated[
        float | None, Option(metavar="A", help="Share of good parts that may be set aside or rejected.")
    ] = None,
    reject_at: Annotated[float | None, Option(metavar="B", help="Share of good parts that may be rejected.")] = None,
    confidence: Annotated[float | None, Option(metavar="C", help="With which both shares are kept.")] = None,
    defects: Annotated[
        Path | None, Option(metavar="FOLDER", help="Defective samples: how many of them escape.")
    ] = None,
    good: Annotated[
        Path | None, Option(metavar="FOLDER", help="Further good parts: does the promise hold for them?")
    ] = None,
    category: Category = None,
) -> None:
    """Say how many good parts will be thrown away; with options, change its verdict.toml."""
    from threecad.calibrating import good_scores
    from threecad.deciding import HEADER, budget_rows, change_verdict, escapes_told, kept_told, scores_of, told

    bad: list[float] | None = None
    further: list[float] | None = None
    with interruptible(lambda: "nothing was changed"), progress() as shown:
        if defects is not None:  # what cannot be read stops here, before anything is changed
            bad = scores_of(folder, [defects], category, counting(shown, "defects"))
        if good is not None:
            counted = counting(shown, "good parts")
            further = good_scores(folder, [good], category=category, progress=counted, notify=shown.notify)
    verdicts = change_verdict(folder, review_at=review_at, reject_at=reject_at, confidence=confidence)
    table(HEADER, budget_rows(verdicts, category))
    for line in told(verdicts, category):
        result(line)
    if bad is not None:
        for line in escapes_told(verdicts.escapes(bad, category), verdicts.settings.confidence):
            result(line)
    if further is not None:
        for line in kept_told(verdicts.kept(further, category), verdicts.limits(category).reject):
            result(line)


def calibrate(
    run: Run,
    inputs: Annotated[
        list[Path],
        Argument(metavar="IMAGE|FOLDER...", help="Pictures of further good parts.", show_default=False),
    ],
    anew: Annotated[bool, Option("--anew", help="Forget the good parts of before, such as another camera's.")] = False,
    category: Category = None,
    device: Annotated[str | None, Option(metavar="D", help="cpu, cuda, …; the best one without.")] = None,
    precision: Annotated[str | None, Option(metavar="P", help="float32 or bf16; the fit's without.")] = None,
) -> None:
    """Add good parts to compare with, at any time and without a fit."""
    from threecad import calibrating

    with interruptible(lambda: "nothing was written"), progress() as shown:
        done = calibrating.calibrate(
            run,
            inputs,
            category=category,
            anew=anew,
            device=device,
            precision=precision,
            progress=counting(shown, "looking at good parts"),
            notify=shown.notify,
        )
    if done.learnt:
        note(f"{done.learnt} images were left out: the model has learnt from them")
    for line in done.told():
        result(line)
