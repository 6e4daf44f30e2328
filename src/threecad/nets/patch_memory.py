"""A memory of good parts' patches, and the nearest of them to a part's own.

The memory is one for the whole part (PatchCore), or one a position of its grid (ours), which is then searched at the
positions around. Patches are chosen for it by greedy coresets or by k-means. It knows which of its patches came from
which candidate, so that any good part can be compared with all the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.maps import full_precision

ROWS_AT_ONCE = 4096  # of a memory, while its nearest are looked for: what bounds the memory of a search
CELLS_AT_ONCE = 64  # of a memory a position, while patches are chosen for it
NOWHERE = 1e30  # the squared length of a patch that is not there: far from everything, yet finite
STARTS = 10  # random patches from which the first of a greedy coreset is farthest
PROJECTED = 128  # values to which vectors are projected while a greedy coreset is chosen
ROUNDS = 8  # of Lloyd's algorithm


class Chosen(NamedTuple):
    """What is kept of the candidates (cells, N, D)."""

    patches: Tensor  # (cells, kept, D)
    members: Tensor  # (cells, N): the row of its cell in which a candidate is remembered, -1 for nowhere
    sizes: Tensor  # (cells, kept): of how many candidates a patch is the mean


class Known(NamedTuple):
    """The patches that are compared with."""

    bank: Tensor  # (cells, rows, D)
    squares: Tensor  # (cells, rows): the squared length of each; `NOWHERE` where no patch is kept


class PatchMemory(nn.Module):
    """Patches of good parts, (cells, rows, D): one cell for all positions, or one for each.

    Args:
        grid: height and width of the grid of patches.
        values: D, length of a patch's vector.
        patches: most patches that are kept, over all cells together; each cell keeps one at least.
        candidates: most patches a position that are chosen from.
        reach: how many positions away a patch may be remembered to be compared with; None: anywhere.
    """

    bank: Tensor  # (cells, rows, D)
    squares: Tensor  # (cells, rows)
    sizes: Tensor  # (cells, rows): of how many candidates each is the mean; 0 where no patch is kept
    members: Tensor  # (positions, candidates): row, over all cells, in which each is remembered; -1 for nowhere

    def __init__(self, grid: tuple[int, int], values: int, patches: int, candidates: int, reach: int | None) -> None:
        super().__init__()
        self.height, self.width = grid
        self.reach = reach
        positions = self.height * self.width
        cells = 1 if reach is None else positions
        self.register_buffer("bank", torch.zeros(cells, max(1, patches // cells), values))
        self.register_buffer("squares", torch.full(self.bank.shape[:2], NOWHERE))
        self.register_buffer("sizes", torch.zeros(self.bank.shape[:2], dtype=torch.int32))
        self.register_buffer("members", torch.full((positions, candidates), -1, dtype=torch.int32))

    def everything(self) -> Known:
        """All that is remembered."""
        return Known(self.bank, self.squares)

    def without(self, vectors: Tensor, rows: Tensor) -> Known:
        """What would be remembered of the same choice without a part: its patches are gone, means are of the others.

        Where nothing else is left to be compared with, the only part there was stays near to itself.

        Args:
            vectors: the part's patches, (P, D).
            rows: among the candidates of their positions, (P,); -1 for a patch that was none.
        """
        row = self.members.gather(1, rows.clamp_min(0).unsqueeze(1)).squeeze(1).long()
        is_kept = (rows >= 0) & (row >= 0)
        changed, which, taken = row[is_kept].unique(return_inverse=True, return_counts=True)
        total = vectors.new_zeros(len(changed), vectors.shape[1]).index_add_(0, which, vectors[is_kept])
        size = self.sizes.flatten()[changed]
        left = (size - taken).unsqueeze(1)
        bank, squares = self.bank, self.squares.flatten().clone()
        squares[changed] = NOWHERE
        if bool((left > 0).any()):  # means; a copy of the memory is needed for nothing else
            patches = bank.flatten(0, 1)[changed]
            others = (size.unsqueeze(1) * patches - total) / left.clamp_min(1)
            bank = bank.flatten(0, 1).index_copy(0, changed, others).view_as(bank)
            squares[changed] = others.square().sum(dim=1).where(left.squeeze(1) > 0, NOWHERE)
        return Known(bank, squares.view_as(self.squares))

    def forward(
        self, vectors: Tensor, known: Known | None = None, turned: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Distance of each patch from the nearest one in memory, and that one's row: (B, P) twice.

        The nearest is found by products, whose differences of large numbers are rounded; its distance is then measured.

        Args:
            vectors: (B, P, D), row by row of the grid.
            known: compared with these instead of everything.
            turned: (D, D); differences are measured behind it. The nearest is the same.
        """
        known = known or self.everything()
        with full_precision(vectors):
            if self.reach is None:
                rows = _nearest_anywhere(vectors, known)
            else:
                rows = self._nearest_around(vectors, known, self.reach)
            away = vectors - _in_rows(known, rows)
            return torch.linalg.vector_norm(away if turned is None else away @ turned, dim=2), rows

    @staticmethod
    def rarity(tested: Tensor, row: Tensor, neighbours: int, known: Known) -> Tensor:
        """1 - exp|m_test - m*| / Σ_m exp|m_test - m| over the b patches m next to m* (eq. 7), (B,).

        It is least where m*, the nearest to m_test, lies among others as near, and so is no rare patch.

        Args:
            tested: m_test, (B, D).
            row: of m*, (B,).
            neighbours: b; m* is one of them.
            known: where the neighbours are looked for.
        """
        with full_precision(tested):
            nearest = _in_rows(known, row)
            closeness = known.squares.flatten() - 2 * nearest @ known.bank.flatten(0, 1).T
            closeness, around = closeness.topk(min(neighbours, closeness.shape[1]), dim=1, largest=False)
            distances = torch.linalg.vector_norm(tested.unsqueeze(1) - _in_rows(known, around), dim=2)
            distances = distances.masked_fill(
                closeness > NOWHERE / 2, -torch.inf
            )  # fewer patches are kept than asked for
            distance = torch.linalg.vector_norm(tested - nearest, dim=1)
            return (1 - (distance - distances.logsumexp(dim=1)).exp()).clamp_min(0)

    def keep(self, chosen: Chosen) -> None:
        """Fill the memory with what was chosen, of which there may be less than room."""
        patches, members, sizes = chosen
        kept, (cells, rows) = patches.shape[1], self.squares.shape
        self.bank.zero_()
        self.bank[:, :kept] = patches
        self.squares.fill_(NOWHERE)
        self.squares[:, :kept] = patches.square().sum(dim=2).where(sizes > 0, NOWHERE)
        self.sizes.zero_()
        self.sizes[:, :kept] = sizes
        first = rows * torch.arange(cells, device=members.device).unsqueeze(1)  # row of each cell, over all cells
        members = torch.where(members >= 0, members + first, -1).view(len(self.members), -1)
        self.members.fill_(-1)
        self.members[:, : members.shape[1]] = members

    def _nearest_around(self, vectors: Tensor, known: Known, reach: int) -> Tensor:
        """Row (B, P), over all cells, of the nearest patch at most `reach` positions away.

        Each cell is compared with all patches around it at once, so that it is read from memory once.
        """
        images, side = vectors.shape[0], 2 * reach + 1  # `len` would tie an exported program to one batch
        height, width, rows = self.height, self.width, known.bank.shape[1]
        padded = F.pad(vectors.unflatten(1, (height, width)), (0, 0, reach, reach, reach, reach))
        around = padded.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 4, 5, 0, 3)  # (h, w, side, side, B, D)
        closeness, row = nearest(around.reshape(height * width, side**2 * images, -1), *known)
        cell = torch.arange(height * width, device=row.device).unsqueeze(1)
        seen = [value.view(height, width, side, side, images) for value in (closeness, row + rows * cell)]
        # The patch at (y, x) was seen by the cell at (y - i + reach, x - j + reach) as its neighbour (i, j).
        closeness, row = (
            torch.stack(
                [
                    F.pad(value[:, :, i, j].permute(2, 0, 1), [reach] * 4, value=outside)[
                        :, 2 * reach - i : 2 * reach - i + height, 2 * reach - j : 2 * reach - j + width
                    ]
                    for i in range(side)
                    for j in range(side)
                ]
            )
            for value, outside in zip(seen, (torch.inf, 0), strict=True)
        )
        best = closeness.argmin(dim=0, keepdim=True)
        return row.gather(0, best).squeeze(0).flatten(1)


def _nearest_anywhere(vectors: Tensor, known: Known) -> Tensor:
    """Row (B, P) of the nearest patch of the only cell."""
    return nearest(vectors.flatten(0, 1).unsqueeze(0), *known)[1].view(vectors.shape[:2])


def _in_rows(known: Known, rows: Tensor) -> Tensor:
    """The patches (..., D) in these rows (...), counted over all cells."""
    return known.bank.flatten(0, 1)[rows]


def nearest(vectors: Tensor, patches: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest patch of each vector's cell: |m|² - 2 x·m, which orders them as |x - m| does, and m's row.

    Args:
        vectors: x, (cells, N, D).
        patches: m, (cells, rows, D).
        squares: |m|², (cells, rows); `NOWHERE` for a row that is not to be found.

    Returns:
        (cells, N) twice.
    """
    found = []
    for first in range(0, patches.shape[1], ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        products = torch.baddbmm(squares[:, some].unsqueeze(2), patches[:, some], vectors.transpose(1, 2), alpha=-2)
        closeness, row = products.min(dim=1)  # (cells, rows, N): the memory, which is large, is read as it lies
        found.append((closeness, row + first))
    closeness, row = (torch.stack(values) for values in zip(*found, strict=True))
    best = closeness.argmin(dim=0, keepdim=True)
    return closeness.gather(0, best).squeeze(0), row.gather(0, best).squeeze(0)


def greedy_coreset(candidates: Tensor, size: int, generator: torch.Generator) -> Chosen:
    """Patches chosen one after another, each the farthest from those chosen before (eq. 5).

    Distances are those of random projections of the vectors. The first is farthest from ten random patches in the mean;
    that mean also counts as each patch's distance from what is chosen, as in the authors' code.

    Args:
        candidates: (cells, N, D).
    """
    cells, count, values = candidates.shape
    projected = candidates
    if values > PROJECTED:
        projection = torch.randn(values, PROJECTED, generator=generator) / PROJECTED**0.5
        projected = candidates @ projection.to(candidates)
    squares = projected.square().sum(dim=2)
    cell = torch.arange(cells, device=candidates.device)

    def squared_distances(centres: Tensor) -> Tensor:
        """(cells, N, centres) of the centres (cells, centres, D)."""
        others = centres.square().sum(dim=2).unsqueeze(1)
        products = torch.baddbmm(others, projected, centres.transpose(1, 2), alpha=-2)
        return products.add_(squares.unsqueeze(2)).clamp_min_(0)

    starts = torch.randperm(count, generator=generator)[:STARTS].to(candidates.device)
    distances = squared_distances(projected[:, starts]).sqrt().mean(dim=2).square()
    chosen = torch.empty(cells, size, dtype=torch.int64, device=candidates.device)
    for i in range(size):
        chosen[:, i] = distances.argmax(dim=1)
        latest = projected[cell, chosen[:, i]].unsqueeze(1)
        distances = torch.minimum(distances, squared_distances(latest).squeeze(2))
    return these(candidates, chosen)


def all_of(candidates: Tensor) -> Chosen:
    """Every candidate (cells, N, D), as it is."""
    cells, count = candidates.shape[:2]
    return these(candidates, torch.arange(count, device=candidates.device).expand(cells, -1))


def these(candidates: Tensor, chosen: Tensor) -> Chosen:
    """The candidates (cells, N, D) in the chosen rows (cells, kept), as they are."""
    cells, count = candidates.shape[:2]
    order = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    members = chosen.new_full((cells, count), -1).scatter_(1, chosen, order)
    patches = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, candidates.shape[2]))
    return Chosen(patches, members, torch.ones_like(chosen))


def k_means(candidates: Tensor, size: int, generator: torch.Generator) -> Chosen:
    """Means of alike candidates (cells, N, D) by Lloyd's algorithm, which starts from a random choice of them.

    One to which no candidate is nearest counts none, and is not remembered.
    """
    first = torch.randperm(candidates.shape[1], generator=generator)[:size].to(candidates.device)
    parts = [_lloyd(some, some[:, first]) for some in candidates.split(CELLS_AT_ONCE)]
    return Chosen(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _lloyd(candidates: Tensor, centres: Tensor) -> Chosen:
    for _ in range(ROUNDS):
        squares = centres.square().sum(dim=2)
        row = torch.cat([nearest(part, centres, squares)[1] for part in candidates.split(ROWS_AT_ONCE, dim=1)], dim=1)
        sizes = row.new_zeros(squares.shape).scatter_add_(1, row, torch.ones_like(row))
        total = torch.zeros_like(centres).scatter_add_(1, row.unsqueeze(2).expand_as(candidates), candidates)
        centres = torch.where(sizes.unsqueeze(2) > 0, total / sizes.clamp_min(1).unsqueeze(2), centres)
    return Chosen(centres, row, sizes)
