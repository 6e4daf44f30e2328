"""How far a part's patches lie from the nearest ones of good parts (after PatchCore; in two halves, which is ours).

A patch is a vector of the teacher's features, whitened by the covariance that all positions have in common. Each half
of the good parts has a memory of its own (`nets.halves`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.candidates import Candidates
from threecad.nets.gaussians import LEAST_VARIANCE, whitening
from threecad.nets.halves import HALVES, from_halves, half_of
from threecad.nets.maps import full_precision, upsample
from threecad.nets.patch_memory import PatchMemory, all_of, k_means
from threecad.nets.sums import joined, of_part

STRIDE = 8  # image pixels between two patches
RIDGE = 0.001  # share of the mean variance that is added to every variance


class _Half(NamedTuple):
    memory: PatchMemory
    candidates: Candidates


class NearestPatches(nn.Module):
    """Distances of patches from the nearest ones in the memories of two halves of the good parts.

    Args:
        image_size: height and width of the images.
        values: D, length of a patch's vector.
        patches: most patches that both memories keep together.
        candidates: most patches that these are made of.

    Attributes:
        grid: height and width of the grid of patches.
        whiten: W with W W^T = Σ^-1, (D, D); the identity until fitted.
    """

    whiten: Tensor

    def __init__(self, image_size: Sequence[int], values: int, patches: int, candidates: int) -> None:
        super().__init__()
        self.grid = (image_size[0] // STRIDE, image_size[1] // STRIDE)
        positions = self.grid[0] * self.grid[1]
        self.register_buffer("whiten", torch.eye(values))
        self.candidates = nn.ModuleList(Candidates(positions, values, candidates // HALVES) for _ in range(HALVES))
        self.memories = nn.ModuleList(
            PatchMemory(self.grid, values, patches // HALVES, max(1, candidates // HALVES // positions), reach=0)
            for _ in range(HALVES)
        )

    def forward(self, features: Sequence[Tensor], reach: int, learnt: Tensor | None = None) -> Tensor:
        """Root mean squares over values (B, 1, h, w), about 1 on good parts, of the distances from the nearest.

        Args:
            features: [(B, C_i, H_i, W_i)].
            reach: how many positions away from its own a patch's nearest may be.
            learnt: as of `from_halves`.
        """
        with full_precision(features[0]):
            vectors = self._vectors(features) @ self.whiten
        distances = from_halves([half.memory(vectors, reach=reach)[0] for half in self._halves()], learnt)
        return distances.unflatten(1, self.grid).unsqueeze(1) / len(self.whiten) ** 0.5

    def empty_counts(self) -> dict[str, Tensor]:
        """How often each address was seen in each half: never."""
        return joined(half.candidates.empty_addresses() for half in self._halves())

    def count(self, sums: Mapping[str, Tensor], image: Tensor) -> None:
        """Count good parts (B, 3, H, W), in place."""
        chosen = half_of(image)
        for index, half in enumerate(self._halves()):
            half.candidates.count_addresses(of_part(sums, index), image[chosen == index])

    def conclude_counts(self, sums: Mapping[str, Tensor]) -> None:
        """Know which parts there are."""
        for index, half in enumerate(self._halves()):
            half.candidates.conclude_addresses(of_part(sums, index))

    def empty_patches(self) -> dict[str, Tensor]:
        """A table of no patches for each half."""
        return joined(half.candidates.empty_table() for half in self._halves())

    def add(self, sums: Mapping[str, Tensor], image: Tensor, features: Sequence[Tensor]) -> None:
        """Add the patches of good parts, in place."""
        chosen, vectors = half_of(image), self._vectors(features)
        for index, half in enumerate(self._halves()):
            half.candidates.add(of_part(sums, index), image[chosen == index], vectors[chosen == index])

    def conclude_patches(self, sums: Mapping[str, Tensor]) -> None:
        """Fill the memories. A half without a part, as of a single one, takes over the other's."""
        tables = [half.candidates.gathered(of_part(sums, index)) for index, half in enumerate(self._halves())]
        tables = [table if table.shape[1] else tables[1 - index] for index, table in enumerate(tables)]
        self.whiten.copy_(_whitening_of_all(tables))
        for half, table in zip(self._halves(), tables, strict=True):
            patches = table @ self.whiten
            rows = half.memory.bank.shape[1]
            fits = patches.shape[1] <= rows
            half.memory.keep(all_of(patches) if fits else k_means(patches, rows, half.candidates.generator()))

    def _halves(self) -> Iterator[_Half]:
        for memory, candidates in zip(self.memories, self.candidates, strict=True):
            yield _Half(cast(PatchMemory, memory), cast(Candidates, candidates))

    def _vectors(self, features: Sequence[Tensor]) -> Tensor:
        """Vectors (B, P, D) of the features at the grid's positions: finer scales averaged, coarser interpolated."""
        with full_precision(features[0]):
            return torch.cat([_at(scale.float(), self.grid) for scale in features], dim=1).flatten(2).transpose(1, 2)


def _at(scale: Tensor, grid: Sequence[int]) -> Tensor:
    finer = scale.shape[-2] // grid[0]
    return F.avg_pool2d(scale, finer) if finer >= 1 else upsample(scale, grid, align_corners=False)


def _whitening_of_all(tables: Sequence[Tensor]) -> Tensor:
    """W (D, D) of patches (P, rows, D) in several tables, about the means of their own positions."""
    away = torch.cat([(table - table.mean(dim=1, keepdim=True)).flatten(0, 1) for table in tables]).double()
    freedom = len(away) - sum(len(table) for table in tables)
    sigma = away.T @ away / max(freedom, 1)
    least = RIDGE * sigma.diagonal().mean().clamp_min(LEAST_VARIANCE)
    identity = torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    return whitening((sigma + least * identity).unsqueeze(0))[0].float()
