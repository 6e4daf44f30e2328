"""The good parts that a bundle compares with: the run's, or scored again where the fit computed otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from threecad.data.loading import content_hashes
from threecad.errors import BundleError
from threecad.export.pictures import kept_aside
from threecad.groups import groups, path_for_patterns
from threecad.inputs import gather
from threecad.predictor import BATCH, Predictor
from threecad.runs import RunRecord
from threecad.runtime.proof import look
from threecad.verdicts import GoodPart, GoodScores, image_name, joined_parts, other_conditions

FIT_OTHERWISE = (
    "fit with --set training.precision=float32, or `threecad calibrate RUN FOLDER --anew --precision float32`"
)


def scored_as_here(
    good: GoodScores, record: RunRecord, predictor: Predictor, data: Path | None, further: Sequence[Path] = ()
) -> GoodScores:
    """The good parts as the predictor scores them; those that were scored under its conditions stay as they are.

    Others, such as those of a fit in bf16, are scored again: the parts that the fit kept aside, and those that were
    calibrated with later.

    Args:
        data: the data root of the fit.
        further: images and folders of the parts that were calibrated with.

    Raises:
        BundleError: not all of them are at hand, or the fit kept none aside.
        DataError: the data root is not the fit's, or there is nothing in `further`.
    """
    differ = other_conditions(good.conditions, predictor.conditions) if good.categories else ""
    if not differ:
        return good
    what = f"good parts were scored otherwise than a bundle does: {differ}"
    if not record.holdout:
        raise BundleError(f"{what}; none were kept aside to score again: {FIT_OTHERWISE}")
    if data is None:
        raise BundleError(f"{what}; give --data ROOT so that they are scored again")
    pattern = record.settings["data"].get("part")
    aside = kept_aside(record, data)
    files = {picture.path: picture.place for picture in aside}
    files |= {image.path: path_for_patterns(image.path) for given in further for image in gather([given], given)}
    named = dict(zip(files, _names(files, pattern), strict=True))
    parts = {}
    for category, before in good.parts.items():
        elsewhere = {picture.path for picture in aside if picture.category != category}
        counted = {one.part: one.lot for one in before}
        shown = {file: name for file, name in named.items() if name in counted and file not in elsewhere}
        missing = len(counted) - len(set(shown.values()))
        if missing:
            raise BundleError(
                f"{what}; {missing} of {len(counted)} were not kept aside by the fit: give --good FOLDER with the "
                f"pictures that were calibrated with, or {FIT_OTHERWISE}"
            )
        seen = zip(shown.values(), look(predictor, list(shown), BATCH), strict=True)
        parts[category] = joined_parts(
            GoodPart.seen(name, found.score, found.anomaly_map, counted[name], found.size) for name, found in seen
        )
    return good.model_copy(update={"parts": parts, "conditions": dict(predictor.conditions)})


def _names(places: Mapping[Path, str], pattern: str | None) -> list[str]:
    """What good parts are known by: what the pattern finds in their pictures' places, or the pictures' content."""
    if pattern:
        return groups(list(places.values()), pattern, "part")
    return [image_name(sha256) for sha256 in content_hashes(list(places))]
