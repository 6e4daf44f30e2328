"""Statistics phases that several methods run before or after their own training (ours; off in the `paper` presets)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from threecad.detector import Epochs, StatisticsPhase
from threecad.nets.calibration import Calibration, Comparison
from threecad.nets.candidates import Candidates
from threecad.nets.nearest_patches import NearestPatches
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


def left_out_phase(
    candidates: Candidates,
    places: Mapping[str, int],
    measure: Callable[[Tensor], Mapping[str, Tensor]],
    learn: Callable[[Mapping[str, Tensor]], None],
) -> StatisticsPhase:
    """A pass over the good parts, after those of `patch_phases`, that measures each as if it had been left out.

    Args:
        candidates: which parts there are.
        places: P of each kind of distance.
        measure: from images (B, 3, H, W) of parts to their distances (B, P), of each kind.
        learn: gets the distances (parts, P) of all, of each kind.
    """

    def empty_sums() -> dict[str, Tensor]:
        widths = {**places, "count": 1}
        return {
            name: candidates.key.new_zeros((candidates.parts, of), dtype=torch.float64) for name, of in widths.items()
        }

    def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
        part = candidates.parts_of(batch.image)
        is_known = part >= 0  # parts beyond those that `Candidates` counts tell nothing
        if not is_known.any():
            return
        for name, found in measure(batch.image[is_known]).items():
            sums[name].index_add_(0, part[is_known], found.double())
        sums["count"].index_add_(0, part[is_known], sums["count"].new_ones(int(is_known.sum()), 1))

    def conclude(sums: Mapping[str, Tensor]) -> None:
        count = sums["count"].clamp_min(1)  # a part may be seen twice
        learn({name: sums[name] / count for name in places})

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
    yield left_out_phase(
        calibration.nearest.candidates,
        calibration.places(),
        lambda image: calibration.measure(*compare_and_segment(image), learnt=image).evidence(),
        calibration.learn_usual,
    )
