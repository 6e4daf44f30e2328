"""What a fit is going to do, known before its first step: batch, steps of each phase, sources of textures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from threecad.detector import Detector, GradientPhase, Phase, Steps
from threecad.errors import DataError, SettingsError
from threecad.settings import TrainingSettings
from threecad.synthesis import TextureSource


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What a fit is going to do."""

    batch: int  # images a step, over all devices together
    steps: tuple[int, ...]  # of each phase
    optimizer_steps: int  # of the whole fit; statistics phases have none
    textures: str | None  # sources of the synthetic anomalies' textures; None: there are none


def plan_fit(detector: Detector, textures: TextureSource, settings: TrainingSettings, images: int) -> FitPlan:
    """The plan: steps are the method's own, or its gradient phases' rescaled to share `settings.steps`.

    Args:
        images: how many frames of good images there are.

    Raises:
        SettingsError: the devices cannot share a batch evenly, or it is too small to learn from.
        DataError: there are fewer images than the method can learn from.
    """
    images //= detector.places  # that each phase looks at
    batch = _batch_size(detector, settings, images)
    phases = list(detector.phases(textures))
    gradient = [isinstance(phase, GradientPhase) for phase in phases]
    steps = [_own_steps(phase, batch, images) for phase in phases]
    own = sum(count for count, learns in zip(steps, gradient, strict=True) if learns) / detector.places
    if settings.steps is not None:
        steps = [
            max(1, round(count * settings.steps / own)) if learns else count
            for count, learns in zip(steps, gradient, strict=True)
        ]
    sources = {phase.synthesizer.source for phase in phases if phase.synthesizer is not None}
    return FitPlan(
        batch=batch,
        steps=tuple(steps),
        optimizer_steps=sum(count for count, learns in zip(steps, gradient, strict=True) if learns),
        textures=", ".join(sorted(source for source in sources if source)) or None,
    )


def _batch_size(detector: Detector, settings: TrainingSettings, images: int) -> int:
    """Images a step: what was asked for or the method's own, but no more than there are."""
    batch = min(settings.batch or detector.batch, images)
    if batch % settings.devices:
        raise SettingsError(
            f"setting 'training.batch': expected a multiple of the {settings.devices} devices, found {batch} images"
        )
    least = detector.least_batch * settings.devices
    if images < least:
        raise DataError(
            f"expected at least {least} good images for {detector.paper.name} to learn from, found {images}"
        )
    if batch < least:
        raise SettingsError(
            f"setting 'training.batch': expected at least {least} images for {detector.paper.name}, whose BatchNorm "
            f"needs two values of each channel on a device; found {batch}"
        )
    return batch


def _own_steps(phase: Phase, batch: int, images: int) -> int:
    if isinstance(phase.duration, Steps):
        return phase.duration.count
    effective = batch * (phase.accumulate if isinstance(phase, GradientPhase) else 1)
    return max(1, math.ceil(phase.duration.count * images / effective))
