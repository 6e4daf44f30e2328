"""What `threecad verdict` says and changes: budgets, what so many good parts allow, and what defects make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from threecad.data.hashes import Progress
from threecad.errors import DataError
from threecad.inputs import gather
from threecad.opening import open_predictor, refuse_unless_run
from threecad.prediction import look_through
from threecad.runs import RunFolder
from threecad.runtime.bundle import Bundle, is_bundle
from threecad.verdicts import (
    UNLIKE,
    Budget,
    Escapes,
    Kept,
    Limit,
    Verdicts,
    compare_lots,
    confidence_words,
    limit,
    parts_needed,
    per_cent,
    read_verdicts,
    with_interval,
    write_budgets,
)

SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Budgets of good parts that are compared."""

HEADER = ("of good parts, at most", "is kept by", "threshold", "which promises", "parts missing")


def change_verdict(folder: Path, **budgets: float | None) -> Verdicts:
    """The verdicts of a run or a bundle, with other budgets where some are given: `verdict.toml` is then written anew.

    Raises:
        SettingsError: a budget that does not fit, or budgets crossed; nothing is written.
        RunError, BundleError: there is no such run or bundle, it is damaged, or the file is another run's.
    """
    if is_bundle(folder):
        bundle = Bundle(folder)
        bundle.refuse_unless_whole(bundle.read_record())
    else:
        refuse_unless_run(folder)
        RunFolder(folder).read_record()
    before = read_verdicts(folder)
    after = before.with_budgets(**budgets)
    if after.settings != before.settings:
        write_budgets(folder, after)
    return after


def budget_rows(verdicts: Verdicts, category: str | None = None) -> list[tuple[str, ...]]:
    """For each of `SHARES` and the two budgets asked for, what the good parts at hand allow; as `HEADER`.

    Raises:
        SettingsError: too few good parts, a category that was not learnt, or several and none is named.
    """
    asked = verdicts.settings
    names = {asked.reject_at: " (reject_at)", asked.review_at: " (review_at)"}
    rows: list[tuple[str, ...]] = []
    for share in sorted({*SHARES, *names}):
        budget = Budget(share, asked.confidence, asked.rule)
        found = limit(verdicts.good.scores(category), budget)
        missing = str(found.missing) if found.missing else "-"
        promised = per_cent(found.promised, up=True)
        needed = f"{parts_needed(budget)} parts"
        rows.append((per_cent(share) + names.get(share, ""), needed, f"{found.threshold:.4g}", promised, missing))
    return rows


def told(verdicts: Verdicts, category: str | None = None) -> Iterator[str]:
    """The promises in words, what to expect of the next good parts, and whether lots are alike."""
    yield from verdicts.sentences(category)
    expected, confidence = verdicts.rejects_to_come(category), verdicts.settings.confidence
    yield (
        f"Of the next 1,000 good parts {expected.value:.1f} will be rejected on average over calibrations like this, "
        f"{expected.low:.0f} to {expected.high:.0f} in {100 * confidence:g} % of them."
    )
    lots = compare_lots(verdicts.good.of(category))
    if lots is None:
        return
    alike = "" if lots.p_value >= UNLIKE else ": they are hardly alike, and the next lot may differ as well"
    yield f"{len(lots.rows)} lots; such differences between lots come by chance with p = {lots.p_value:.2g}{alike}"
    for lot in lots.rows:
        yield (
            f"  lot {lot.name}: {lot.n} parts, median {lot.median:.4g}, highest {lot.highest:.4g}, "
            f"{per_cent(lot.above_others)} above 95 % of the others"
        )


def escapes_told(escapes: Escapes, confidence: float) -> Iterator[str]:
    """What defective samples say, in words."""
    for share, what in ((escapes.passed, "pass as OK"), (escapes.not_rejected, "are not rejected (OK or REVIEW)")):
        yield f"Of {escapes.n} defective samples {with_interval(share)} {what}, with {100 * confidence:g} % confidence."


def kept_told(kept: Kept, limit: Limit) -> Iterator[str]:
    """What further good parts say of the promise, in words: how many are rejected, and whether they are like those."""
    yield (
        f"Of these {kept.n} good parts {with_interval(kept.rejected)} are rejected, with "
        f"{confidence_words(limit.budget)}; promised were at most {per_cent(limit.promised, up=True)}."
    )
    chance = f"such a difference between good parts of one kind comes by chance with p = {kept.p_value:.2g}"
    if kept.rejected.low > limit.promised or kept.p_value < UNLIKE:
        yield (
            f"They do not score like the {limit.n} that the thresholds come from ({chance}): the promise does not hold "
            "for them. Find what has changed, or calibrate with parts like these."
        )
    else:
        yield f"They score like the {limit.n} that the thresholds come from ({chance})."


def scores_of(
    folder: Path, inputs: Sequence[Path], category: str | None = None, progress: Progress | None = None
) -> list[float]:
    """The score that a run or a bundle gives each image.

    Raises:
        DataError: an image that cannot be read.
    """
    predictor, scores = open_predictor(folder), []
    images = [image for given in inputs for image in gather([given], folder)]
    for done, (image, found) in enumerate(look_through(predictor, images, category), start=1):
        if found is None:
            raise DataError(image.error)
        scores.append(found.score)
        if progress:
            progress(done, len(images))
    return scores
