"""Statistics phases that several methods run before or after their own training (ours; off in the `paper` presets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from threecad.detector import Epochs, StatisticsPhase
from threecad.nets.calibration import Calibration, thinned
from threecad.nets.differences import Comparison
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.records import Batch
from threecad.synthesis import Synthesizer


def standardisation_phase(
    standardise: Iterable[nn.Module], describe: Callable[[Tensor], Sequence[Tensor]]
) -> StatisticsPhase:
    """A pass over the good parts that gives every `Standardisation` of a method its means and spreads.

    Args:
        standardise: the `Standardisation` modules.
        describe: from images (B, 3, H, W) to the vectors (..., D) that each of them gets.
    """
    parts = cast("list[Standardisation]", list(standardise))

    def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
        for index, (part, vectors) in enumerate(zip(parts, describe(batch.image), strict=True)):
            part.add(of_part(sums, index), vectors)

    def conclude(sums: Mapping[str, Tensor]) -> None:
        for index, part in enumerate(parts):
            part.conclude(of_part(sums, index))

    return StatisticsPhase("standardisation", lambda: joined(part.empty_sums() for part in parts), observe, conclude)


def calibration_phases(
    calibration: Calibration,
    teacher: Callable[[Tensor], Sequence[Tensor]],
    compare: Callable[[Tensor], Comparison],
    synthesizer: Synthesizer,
    ridge: float,
) -> Iterator[StatisticsPhase]:
    """The passes that fit a `Calibration`: what is usual of good parts, and of altered ones beside the alteration; the
    patches of good parts; and the distances' spreads.

    Args:
        teacher: from images (B, 3, H, W) to the features that `compare` compares the others with.
        compare: from images to what the calibration compares.
        synthesizer: alters the parts that the coarse Gaussians are fitted on.
        ridge: share of the mean variance that is added to every variance.
    """
    fine, coarse, nearest = calibration.fine, calibration.coarse, calibration.nearest
    yield StatisticsPhase(
        "fine_distances",
        fine.empty_sums,
        observe=lambda sums, batch: fine.add(sums, compare(batch.image)),
        conclude=lambda sums: fine.conclude(sums, ridge),
    )
    yield StatisticsPhase(
        "coarse_distance",
        coarse.empty_sums,
        observe=lambda sums, batch: coarse.add(sums, batch.image, compare(batch.augmented), batch.mask),
        conclude=lambda sums: coarse.conclude(sums, ridge),
        synthesizer=synthesizer,
        duration=Epochs(2),
    )
    yield StatisticsPhase(
        "good_parts",
        nearest.empty_counts,
        observe=lambda sums, batch: nearest.count(sums, batch.image),
        conclude=nearest.conclude_counts,
    )
    yield StatisticsPhase(
        "nearest_patches",
        nearest.empty_patches,
        observe=lambda sums, batch: nearest.add(sums, batch.image, thinned(teacher(batch.image))),
        conclude=nearest.conclude_patches,
    )
    yield standardisation_phase(
        [calibration.places, calibration.peaks], lambda image: calibration.usual(image, compare(image))
    )
