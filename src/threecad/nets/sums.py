"""Sums of several parts in the one flat dictionary that a statistics phase has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def joined(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of all parts, by "index name"."""
    return {f"{index} {name}": tensor for index, sums in enumerate(parts) for name, tensor in sums.items()}


def of_part(sums: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The sums of one part, by name; the same tensors, so that adding to them adds to `sums`."""
    return {name.partition(" ")[2]: tensor for name, tensor in sums.items() if name.startswith(f"{index} ")}
