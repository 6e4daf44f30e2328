"""Statistics phases that several methods run before or after their own training (ours; off in the `paper` presets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from threecad.detector import Epochs, StatisticsPhase, Steps
from threecad.nets.calibration import Calibration, thinned
from threecad.nets.differences import Comparison
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.records import Batch
from threecad.synthesis import Synthesizer
from threecad.synthesis.alterations import KINDS, Alterations


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


EVIDENCE = Steps(8)
"""How many batches of each kind of alterations weights are learnt from."""


def calibration_phases(
    calibration: Calibration,
    teacher: Callable[[Tensor], Sequence[Tensor]],
    compare: Callable[[Tensor], Comparison],
    synthesizer: Synthesizer,
    ridge: float,
) -> Iterator[StatisticsPhase]:
    """The passes that fit a `Calibration`: what is usual of good parts, and of altered ones beside the alteration; the
    distances' spreads; and, from one kind of alterations after the other, the weights of the distances.

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
    for index, kind in enumerate(KINDS):
        yield _weights_phase(calibration, compare, index, Alterations(kind))


def _weights_phase(
    calibration: Calibration, compare: Callable[[Tensor], Comparison], index: int, alterations: Alterations
) -> StatisticsPhase:
    """A pass over some of the good parts, as they are and altered, that weighs the distances once more."""
    weighings = calibration.map_weights, calibration.score_weights

    def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
        counts = [of_part(sums, part) for part in range(len(weighings))]
        calibration.add_evidence(counts, batch.image, compare(batch.image), compare(batch.augmented), batch.mask)

    def conclude(sums: Mapping[str, Tensor]) -> None:
        for part, weighing in enumerate(weighings):
            weighing.conclude(of_part(sums, part), index)

    return StatisticsPhase(
        f"weights_{alterations.kind}",
        lambda: joined(weighing.empty_sums() for weighing in weighings),
        observe,
        conclude,
        synthesizer=alterations,
        duration=EVIDENCE,
    )
