"""Phases that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from threecad.detector import StatisticsPhase
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.records import Batch


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
