"""Further good parts for a run, on the machine where they are made, without fitting anew: added, or held against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from threecad.data.hashes import Progress, content_hashes
from threecad.errors import DataError
from threecad.groups import groups, path_for_patterns
from threecad.inference import load
from threecad.inputs import Input, gather
from threecad.opening import open_predictor
from threecad.prediction import look_through
from threecad.predictor import Predictor
from threecad.runs import RunFolder
from threecad.verdicts import (
    GoodLooks,
    GoodPart,
    GoodScores,
    Look,
    Verdicts,
    image_name,
    joined_parts,
    look,
    per_cent,
    read_verdicts,
    refuse_other_conditions,
)


class Calibrated(NamedTuple):
    """What further good parts have changed."""

    before: Verdicts
    after: Verdicts
    category: str
    images: int  # that are new, and were looked at
    learnt: int  # that the model has learnt from, and that therefore say nothing

    def told(self) -> Iterator[str]:
        """In words: what was promised before, what is now, and why that can be more."""
        for when, verdicts in (("before", self.before), ("now", self.after)):
            parts = len(verdicts.good.of(self.category))
            known = verdicts.can_judge(self.category)
            said = verdicts.sentences(self.category)[0] if known else "Every part is REVIEW."
            yield f"{when}: {parts} good parts. {said}"
        if not (self.before.can_judge(self.category) and self.after.can_judge(self.category)):
            return
        was, now = (verdicts.limits(self.category).reject for verdicts in (self.before, self.after))
        if now.promised > was.promised:
            yield (
                f"The budget of {per_cent(now.budget.share)} is used up: with {now.n} parts the threshold may leave "
                f"{now.above} of them above, with {was.n} it left {was.above}. It is {now.threshold:.4g} now, was "
                f"{was.threshold:.4g}; a smaller budget (threecad verdict RUN --reject-at) puts it up."
            )


def good_scores(
    folder: Path,
    inputs: Sequence[Path],
    *,
    category: str | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """The score that a run or a bundle gives each further good part, to be held against those that count already.

    Arguments are as of `calibrate`.

    Raises:
        DataError: an image that cannot be read, or no part that is new.
        RunError, BundleError: what cannot be loaded, or whose good parts were scored under other conditions.
        SettingsError: a category that was not learnt, or several and none is named.
    """
    predictor = open_predictor(folder, notify=notify)
    good = read_verdicts(folder).good
    name = good.category(category)
    refuse_other_conditions(good.conditions, predictor.conditions, "the good parts' scores")
    images, _ = _not_learnt([image for given in inputs for image in gather([given], folder)], good)
    patterns = {"part": good.part} if good.part else {}
    parts = [part for part, _ in _good_parts(predictor, images, name, patterns, progress)]
    counted = {part.part for part in good.of(name)}
    scores = [part.score for part in joined_parts(parts) if part.part not in counted]
    if not scores:
        raise DataError(f"all of these {len(parts)} images are counted already; expected pictures of other good parts")
    return scores


def calibrate(
    run: Path | str,
    inputs: Sequence[Path],
    *,
    category: str | None = None,
    anew: bool = False,
    device: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Calibrated:
    """Add images of good parts to a run's `good.json`, and work out its thresholds again.

    The same images a second time change nothing, whatever they are called. Images that the model has learnt from are
    left out: it knows them, and scores them too low. Nothing is written unless every image could be looked at.

    Args:
        inputs: images, and folders of images at any depth.
        category: of which the parts are, where the run has learnt several.
        anew: forget the good parts of before, such as those of another camera, precision or machine.
        device: as of `threecad.load`; likewise `precision`.
        progress: called with how many are done, and how many there are.
        notify: called with a line worth reading.

    Raises:
        DataError: an image that cannot be read, or none that says anything.
        RunError: a run that cannot be loaded, or good parts of other conditions without `anew`.
        SettingsError: a category that was not learnt, or several and none is named.
    """
    folder = RunFolder(Path(run))
    predictor = load(run, device=device, precision=precision, notify=lambda line: None if anew else notify(line))
    before = folder.read_verdicts()
    name = before.good.category(category)
    if not anew and before.good.categories:
        refuse_other_conditions(before.good.conditions, predictor.conditions, "the good parts' scores")
    found = [image for given in inputs for image in gather([given], folder.path)]
    images, learnt = _not_learnt(found, before.good)
    patterns = folder.read_record().settings.get("data", {})
    if not (anew or patterns.get("part")):  # an image that counts already would score the same again
        counted = {part.part for part in before.good.of(name)}
        images = {known: image for known, image in images.items() if known not in counted}
        if not images:
            return Calibrated(before, before, name, 0, learnt)
    seen = list(_good_parts(predictor, images, name, patterns, progress, notify))
    parts, looks = [part for part, _ in seen], [whole for _, whole in seen]
    kept = before.good.model_copy(update={"parts": dict.fromkeys(before.good.parts, ())}) if anew else before.good
    good = kept.joined(name, parts, predictor.conditions, GoodLooks.of(looks))
    after = replace(before, good=good)
    folder.write_verdicts(after)
    return Calibrated(before, after, name, len(images), learnt)


def _not_learnt(images: Sequence[Input], good: GoodScores) -> tuple[dict[str, Input], int]:
    """Images by what they are known by, without those that were learnt from, and how many of those there were.

    Raises:
        DataError: none is left.
    """
    names = [image_name(sha256) for sha256 in content_hashes([image.path for image in images])]
    learnt = set(good.learnt)
    new = {name: image for name, image in zip(names, images, strict=True) if name not in learnt}
    if not new:
        raise DataError(
            f"the model has learnt from all of the {len(images)} images: it knows them, and they say nothing of parts "
            "to come; expected pictures of other good parts"
        )
    return new, sum(name in learnt for name in names)


def _good_parts(
    predictor: Predictor,
    images: Mapping[str, Input],
    category: str,
    patterns: Mapping[str, str],
    progress: Progress | None,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[GoodPart, Look]]:
    """Each image as a good part, with its look; unusual looks are told."""
    paths = [path_for_patterns(image.path) for image in images.values()]
    parts = groups(paths, patterns["part"], "part") if patterns.get("part") else list(images)
    lots = groups(paths, patterns["lot"], "lot") if patterns.get("lot") else [None] * len(paths)
    seen = look_through(predictor, list(images.values()), category, keep_whole=True)
    for done, (part, lot, (image, found)) in enumerate(zip(parts, lots, seen, strict=True), start=1):
        if found is None or image.whole is None:
            raise DataError(image.error)
        if image.doubt:
            notify(f"{image.source.path}: {image.doubt}; from now on, images like it pass for pictures of parts")
        if found.doubt:
            notify(f"{image.source.path}: {found.doubt}; images like it are set aside, until a fit has such parts")
        if not math.isfinite(found.score):
            raise DataError(f"{image.source.path}: expected a finite score, found {found.score}; the run is damaged")
        yield GoodPart.seen(part, found.score, found.anomaly_map, lot, found.size), look(image.whole)
        if progress:
            progress(done, len(images))
