"""How far each patch of a part lies from the nearest one that good parts have (PatchCore; an option of CFRG).

The memory is filled by `shared_phases.patch_phases`. Whitening and units of a place are ours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from threecad.nets.candidates import Candidates
from threecad.nets.patch_memory import Known, PatchMemory, all_of, greedy_coreset, k_means
from threecad.nets.place_units import PlaceUnits
from threecad.nets.shared_whitening import SharedWhitening


class Nearest(NamedTuple):
    """What was found of the patches of B images."""

    distances: Tensor  # (B, P)
    vectors: Tensor  # (B, P, D) of the patches, whitened where asked for
    rows: Tensor  # (B, P) of the nearest ones in memory
    known: Known  # what they were looked for in


class NearestPatches(nn.Module):
    """A memory of good parts' patches.

    Args:
        grid: height and width of the grid of patches.
        values: D, length of a patch's vector.
        patches: most patches that are kept.
        candidates: most patches that are chosen from.
        reach: how many positions away a patch may be remembered to be compared with; None: anywhere.
        share: of the candidates, that is kept at most.
        sampling: keep a greedy coreset, or the means of groups of patches.
        ridge: share of the mean variance that is added to every variance where vectors are whitened by the covariance
            that all places have in common; None: they are not.
        own_units: measure distances at each place in units of how much good parts differ there.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        values: int,
        patches: int,
        candidates: int,
        reach: int | None,
        share: float = 1.0,
        sampling: Literal["coreset", "k_means"] = "k_means",
        ridge: float | None = None,
        own_units: bool = False,
    ) -> None:
        super().__init__()
        self.share, self.sampling = share, sampling
        places = grid[0] * grid[1]
        self.candidates = Candidates(places, values, candidates)
        self.memory = PatchMemory(grid, values, patches, self.candidates.most_rows, reach)
        self.units = PlaceUnits(places, values)
        self.own_units = own_units
        self.whiten = None if ridge is None else SharedWhitening(values, ridge)

    def forward(self, vectors: Tensor) -> Nearest:
        """Distances of patches (B, P, D) from the nearest in memory, in units of their places if asked for."""
        units = self.units() if self.own_units else None
        return self._compare(self._whitened(vectors), self.memory.everything(), units)

    def left_out(self, vectors: Tensor, image: Tensor) -> list[Nearest]:
        """The same for each of the images (B, 3, H, W) without its own patches in memory, means and spreads."""
        found = []
        for own, row in zip(self._whitened(vectors), self.candidates.rows_of(image), strict=True):
            known, turned = self.memory.without(own, row), None
            units = self.units.without(own, row >= 0) if self.own_units else None
            if self.whiten is not None:
                turned = self.whiten.without((own - self.units.mean)[row >= 0], self.units.count[row >= 0])
            found.append(self._compare(own.unsqueeze(0), known, units, turned))
        return found

    def distances_left_out(self, vectors: Tensor, image: Tensor) -> Tensor:
        """The distances (B, P) that `left_out` finds."""
        return torch.cat([found.distances for found in self.left_out(vectors, image)])

    def remember(self, patches: Tensor) -> None:
        """Fill memory, units and whitening from the good parts' patches (P, rows, D)."""
        if self.whiten is not None:
            self.whiten.learn(patches)
            patches = self.whiten(patches)
        self.units.learn(patches)
        cells, rows, _ = self.memory.bank.shape
        candidates = patches.view(cells, -1, patches.shape[2])
        count = candidates.shape[1]
        size = min(rows, max(1, round(self.share * count)))
        if size == count:
            chosen = all_of(candidates)
        else:
            choose = k_means if self.sampling == "k_means" else greedy_coreset
            chosen = choose(candidates, size, self.candidates.generator())
        self.memory.keep(chosen)

    def _whitened(self, vectors: Tensor) -> Tensor:
        return vectors if self.whiten is None else self.whiten(vectors)

    def _compare(self, vectors: Tensor, known: Known, units: Tensor | None, turned: Tensor | None = None) -> Nearest:
        """As the memory compares, in units (P,)."""
        distances, rows = self.memory(vectors, known, turned)
        return Nearest(distances if units is None else distances / units, vectors, rows, known)
