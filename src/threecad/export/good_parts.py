"""The good parts that a bundle compares with: the run's, or scored again where the fit computed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threecad.data.loading import content_hashes
from threecad.errors import BundleError
from threecad.export.pictures import kept_aside
from threecad.groups import groups
from threecad.predictor import BATCH, Predictor
from threecad.runs import RunRecord
from threecad.runtime.proof import Picture, look
from threecad.verdicts import GoodPart, GoodScores, image_name, joined_parts, other_conditions

FIT_OTHERWISE = (
    "fit with --set training.precision=float32, or `threecad calibrate RUN FOLDER --anew --precision float32`"
)


def scored_as_here(good: GoodScores, record: RunRecord, predictor: Predictor, data: Path | None) -> GoodScores:
    """The good parts as the predictor scores them; those that were scored under its conditions stay as they are.

    Others, such as those of a fit in bf16, are scored again: the parts that the fit kept aside.

    Args:
        data: the data root of the fit.

    Raises:
        BundleError: they are not at hand, or the fit kept none aside.
        DataError: the data root is not the fit's.
    """
    differ = other_conditions(good.conditions, predictor.conditions) if good.categories else ""
    if not differ:
        return good
    what = f"good parts were scored otherwise than a bundle does: {differ}"
    if not record.holdout:
        raise BundleError(f"{what}; none were kept aside to score again: {FIT_OTHERWISE}")
    if data is None:
        raise BundleError(f"{what}; give --data ROOT so that they are scored again")
    aside = kept_aside(record, data)
    parts = {}
    for name, before in good.parts.items():
        parts[name] = _scored([picture for picture in aside if picture.category == name], before, record, predictor)
        if {one.part for one in parts[name]} != {one.part for one in before}:
            raise BundleError(f"{what}; not all of them were kept aside by the fit: {FIT_OTHERWISE}")
    return good.model_copy(update={"parts": parts, "conditions": dict(predictor.conditions)})


def _scored(
    pictures: Sequence[Picture], before: Sequence[GoodPart], record: RunRecord, predictor: Predictor
) -> tuple[GoodPart, ...]:
    """The parts of one category that the pictures show, named and in lots as before."""
    files, pattern = [picture.path for picture in pictures], record.settings["data"].get("part")
    if pattern:
        names = groups([picture.place for picture in pictures], pattern, "part")
    else:
        names = [image_name(sha256) for sha256 in content_hashes(files)]
    lots = {one.part: one.lot for one in before}
    seen = zip(names, look(predictor, files, BATCH), strict=True)
    return joined_parts(
        GoodPart.seen(name, found.score, found.anomaly_map, lots.get(name), found.size) for name, found in seen
    )
