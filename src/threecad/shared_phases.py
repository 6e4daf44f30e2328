"""Statistics phases that several methods run before or after their own training (ours; off in the `paper` presets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from threecad.detector import Epochs, StatisticsPhase
from threecad.nets.calibration import Calibration, Comparison
from threecad.nets.nearest_patches import NearestPatches
from threecad.nets.oddness import Oddness
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


def patch_phases(nearest: NearestPatches, describe: Callable[[Tensor], Tensor]) -> Iterator[StatisticsPhase]:
    """Two passes over the good parts: which there are, then their patches.

    Args:
        describe: from images (B, 3, H, W) to the vectors (B, P, D) of their patches.
    """
    candidates = nearest.candidates
    yield StatisticsPhase(
        "parts",
        candidates.empty_addresses,
        observe=lambda sums, batch: candidates.count_addresses(sums, batch.image),
        conclude=candidates.conclude_addresses,
    )
    yield StatisticsPhase(
        "memory",
        candidates.empty_table,
        observe=lambda sums, batch: candidates.add(sums, batch.image, describe(batch.image)),
        conclude=lambda sums: nearest.remember(candidates.gathered(sums)),
    )


def oddness_phase(oddness: Oddness, nearest: NearestPatches, describe: Callable[[Tensor], Tensor]) -> StatisticsPhase:
    """A pass over the good parts, after those of `patch_phases`, that finds how far each lies from all the others.

    Args:
        describe: as of `patch_phases`.
    """
    candidates = nearest.candidates

    def empty_sums() -> dict[str, Tensor]:
        shapes = {"distances": (candidates.parts, candidates.positions), "count": (candidates.parts, 1)}
        return {name: candidates.key.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
        part = candidates.parts_of(batch.image)
        is_known = part >= 0  # of more parts than `Candidates` counts the others tell nothing
        if is_known.any():
            image = batch.image[is_known]
            found = torch.cat([one.distances for one in nearest.left_out(describe(image), image)]).double()
            sums["distances"].index_add_(0, part[is_known], found)
            sums["count"].index_add_(0, part[is_known], torch.ones_like(found[:, :1]))

    def conclude(sums: Mapping[str, Tensor]) -> None:
        oddness.learn(sums["distances"] / sums["count"].clamp_min(1))  # a part may be seen twice

    return StatisticsPhase("left_out", empty_sums, observe, conclude)


def calibration_phases(
    calibration: Calibration,
    teacher: Callable[[Tensor], Sequence[Tensor]],
    compare: Callable[[Tensor], Comparison],
    compare_and_segment: Callable[[Tensor], tuple[Comparison, Tensor]],
    synthesizer: Synthesizer,
    ridge: float,
) -> Iterator[StatisticsPhase]:
    """The passes that fit a `Calibration`: Gaussians, fine and coarse, patches, and what is usual of all.

    Args:
        teacher: from images (B, 3, H, W) to the features that patches are made of.
        compare: from images (B, 3, H, W) to what the calibration compares.
        compare_and_segment: to that and the mask (B, 1, H, W) segmented from it, which takes longer.
        synthesizer: alters the parts that the coarse Gaussians are fitted on.
        ridge: share of the mean variance that is added to every variance.
    """
    yield StatisticsPhase(
        "fine_distances",
        calibration.empty_fine_sums,
        observe=lambda sums, batch: calibration.add_fine(sums, compare(batch.image)),
        conclude=lambda sums: calibration.conclude_fine(sums, ridge),
    )
    yield StatisticsPhase(
        "coarse_distances",
        calibration.empty_coarse_sums,
        observe=lambda sums, batch: calibration.add_coarse(sums, compare(batch.augmented), batch.mask),
        conclude=lambda sums: calibration.conclude_coarse(sums, ridge),
        synthesizer=synthesizer,
        duration=Epochs(2),
    )
    yield from patch_phases(calibration.nearest, lambda image: calibration.vectors(teacher(image)))

    def usual(image: Tensor) -> tuple[Tensor, Tensor]:
        measured = calibration.measure(*compare_and_segment(image), learnt=image)
        return measured.evidence(), measured.squares()

    yield standardisation_phase([calibration.usual_evidence, calibration.usual_squares], usual)
