"""Looks at the images that stand beside a method's own training (ours; off in the `paper` presets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from threecad.detector import Epochs, StatisticsPhase
from threecad.nets.calibration import Calibration
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.records import Batch
from threecad.synthesis import Synthesizer


def standardisation_phase(
    standardise: Iterable[nn.Module], describe: Callable[[Tensor], Sequence[Tensor]]
) -> StatisticsPhase:
    """One look at the good parts: mean and spread of each value, for each `Standardisation` of a method.

    Args:
        describe: from images (B, 3, H, W) to the vectors (..., D) of each of them, before they are standardised.
    """
    parts = cast("list[Standardisation]", list(standardise))
    sums = joined(part.empty_sums() for part in parts)

    def observe(batch: Batch) -> None:
        for index, (part, vectors) in enumerate(zip(parts, describe(batch.image), strict=True)):
            part.add(of_part(sums, index), vectors)

    def conclude() -> None:
        for index, part in enumerate(parts):
            part.conclude(of_part(sums, index))

    return StatisticsPhase("standardisation", sums, observe, conclude)


def calibration_phases(
    calibration: Calibration,
    compare: Callable[[Tensor], tuple[Sequence[Tensor], Sequence[Sequence[Tensor]], Tensor]],
    synthesizer: Synthesizer,
    ridge: float,
) -> Iterator[StatisticsPhase]:
    """Three looks: how distances spread on good parts, how beside alterations, how high the peaks of good parts are.

    Args:
        compare: from images to the arguments of `calibration`.
        synthesizer: alters the parts of the second look.
        ridge: share of the mean variance that is added to every variance.
    """
    good, beside = calibration.empty_sums(), calibration.coarse.empty_sums()

    def observe_good(batch: Batch) -> None:
        teacher, others, _ = compare(batch.image)
        calibration.add(good, teacher, others[0])

    def observe_beside(batch: Batch) -> None:
        teacher, others, _ = compare(batch.augmented)
        calibration.add_surroundings(beside, teacher, others, batch.mask)

    yield StatisticsPhase("calibration", good, observe_good, lambda: calibration.conclude(good, ridge))
    yield StatisticsPhase(
        "surroundings",
        beside,
        observe_beside,
        lambda: calibration.conclude_surroundings(beside, ridge),
        synthesizer,
        Epochs(2),
    )
    yield standardisation_phase(
        [calibration.standardise], lambda image: [calibration.measure(*compare(image), seen=True)[1]]
    )
