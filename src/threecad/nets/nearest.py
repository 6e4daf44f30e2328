"""How far a part's patches lie from the nearest ones of good parts (after PatchCore; the two halves are ours).

A patch is a vector of the teacher's features, whitened by the covariance that all positions have in common. Good
parts fall by chance into two halves, and each half has a memory of its own. A part that was learnt from is measured by
the half that it is not in, as if it had been left out; a part to come by the mean of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.candidates import Candidates
from threecad.nets.gaussians import LEAST_VARIANCE, whitening
from threecad.nets.maps import full_precision, upsample
from threecad.nets.patch_memory import PatchMemory, k_means
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
        self.memories = nn.ModuleList(PatchMemory(self.grid, values, patches // 2, reach=0) for _ in range(2))
        self.candidates = nn.ModuleList(Candidates(positions, values, candidates // 2) for _ in range(2))

    def forward(self, features: Sequence[Tensor], reach: int) -> Tensor:
        """Root mean squares over values (B, h, w), about 1 where parts are good, of the distances from the nearest.

        Args:
            features: [(B, C_i, H_i, W_i)].
            reach: how many positions away from its own a patch's nearest may be.
        """
        return torch.stack(self._from_halves(features, reach)).mean(dim=0)

    def left_out(self, features: Sequence[Tensor], reach: int, image: Tensor) -> Tensor:
        """The same, each part by the half without it.

        Args:
            image: the good parts (B, 3, H, W), as they were learnt; `features` may be those of altered ones.
        """
        first, second = self._from_halves(features, reach)
        return torch.where(half_of(image).view(-1, 1, 1) == 0, second, first)

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
            half.memory.keep(patches if fits else k_means(patches, rows, half.candidates.generator()))

    def _halves(self) -> Iterator[_Half]:
        for memory, candidates in zip(self.memories, self.candidates, strict=True):
            yield _Half(cast(PatchMemory, memory), cast(Candidates, candidates))

    def _from_halves(self, features: Sequence[Tensor], reach: int) -> list[Tensor]:
        """Distances (B, h, w) from each half's nearest."""
        with full_precision(features[0]):
            vectors = self._vectors(features) @ self.whiten
        distances = [half.memory(vectors, reach)[0] for half in self._halves()]
        return [distance.unflatten(1, self.grid) / len(self.whiten) ** 0.5 for distance in distances]

    def _vectors(self, features: Sequence[Tensor]) -> Tensor:
        """Vectors (B, P, D) of the features at the grid's positions: finer scales averaged, coarser interpolated."""
        with full_precision(features[0]):
            return torch.cat([_at(scale.float(), self.grid) for scale in features], dim=1).flatten(2).transpose(1, 2)


def half_of(image: Tensor) -> Tensor:
    """The half, 0 or 1, of each good part (B, 3, H, W) in [0, 1]: whether the sum of its levels is odd, (B,)."""
    return (image.float() * 255).round().long().flatten(1).sum(dim=1) % 2


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
