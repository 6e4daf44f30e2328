"""A memory of good parts' patches, and the nearest of them to a part's own.

The memory is one for the whole part (PatchCore), or one a position of its grid (ours), which is then searched at the
positions around. Patches are chosen for it by greedy coresets or by k-means.
"""

from __future__ import annotations

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


class PatchMemory(nn.Module):
    """Patches of good parts, (cells, rows, D): one cell for all positions, or one for each.

    Args:
        grid: height and width of the grid of patches.
        values: D, length of a patch's vector.
        patches: most patches that are kept, over all cells together; each cell keeps one at least.
        reach: how many positions away a patch may be remembered to be compared with; None: anywhere.
    """

    bank: Tensor  # (cells, rows, D)
    squares: Tensor  # (cells, rows): the squared length of each; `NOWHERE` where no patch is kept

    def __init__(self, grid: tuple[int, int], values: int, patches: int, reach: int | None) -> None:
        super().__init__()
        self.height, self.width = grid
        self.reach = reach
        cells = 1 if reach is None else self.height * self.width
        self.register_buffer("bank", torch.zeros(cells, max(1, patches // cells), values))
        self.register_buffer("squares", torch.full(self.bank.shape[:2], NOWHERE))

    def forward(self, vectors: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """Distance of each patch from the nearest one in memory, and that one's row: (B, P) twice.

        The nearest is found by products, whose differences of large numbers are rounded; its distance is then measured.

        Args:
            vectors: (B, P, D), row by row of the grid.
            reach: in the place of the memory's own, for a memory a position.
        """
        reach = self.reach if reach is None else reach
        with full_precision(vectors):
            rows = self._nearest_anywhere(vectors) if reach is None else self._nearest_around(vectors, reach)
            return torch.linalg.vector_norm(vectors - self._patches(rows), dim=2), rows

    def rarity(self, tested: Tensor, row: Tensor, neighbours: int) -> Tensor:
        """1 - exp|m_test - m*| / Σ_m exp|m_test - m| over the b patches m next to m* (eq. 7), (B,).

        It is least where m*, the nearest to m_test, lies among others as near, and so is no rare patch.

        Args:
            tested: m_test, (B, D).
            row: of m*, (B,).
            neighbours: b; m* is one of them.
        """
        with full_precision(tested):
            nearest = self._patches(row)
            closeness = self.squares.flatten() - 2 * nearest @ self.bank.flatten(0, 1).T
            closeness, around = closeness.topk(min(neighbours, closeness.shape[1]), dim=1, largest=False)
            distances = torch.linalg.vector_norm(tested.unsqueeze(1) - self._patches(around), dim=2)
            distances = distances.masked_fill(
                closeness > NOWHERE / 2, -torch.inf
            )  # fewer patches are kept than asked for
            distance = torch.linalg.vector_norm(tested - nearest, dim=1)
            return (1 - (distance - distances.logsumexp(dim=1)).exp()).clamp_min(0)

    def keep(self, patches: Tensor) -> None:
        """Fill the memory with patches (cells, kept, D), of which there may be fewer than rows."""
        self.bank.zero_()
        self.bank[:, : patches.shape[1]] = patches
        self.squares.fill_(NOWHERE)
        self.squares[:, : patches.shape[1]] = patches.square().sum(dim=2)

    def _patches(self, rows: Tensor) -> Tensor:
        """The remembered patches (..., D) in these rows (...), counted over all cells."""
        return self.bank.flatten(0, 1)[rows]

    def _nearest_anywhere(self, vectors: Tensor) -> Tensor:
        """Row (B, P) of the nearest patch of the only cell."""
        return nearest(vectors.flatten(0, 1).unsqueeze(0), self.bank, self.squares)[1].view(vectors.shape[:2])

    def _nearest_around(self, vectors: Tensor, reach: int) -> Tensor:
        """Row (B, P), over all cells, of the nearest patch at most `reach` positions away.

        Each cell is compared with all patches around it at once, so that it is read from memory once.
        """
        images, side = vectors.shape[0], 2 * reach + 1  # `len` would tie an exported program to one batch
        height, width, rows = self.height, self.width, self.bank.shape[1]
        padded = F.pad(vectors.unflatten(1, (height, width)), (0, 0, reach, reach, reach, reach))
        around = padded.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 4, 5, 0, 3)  # (h, w, side, side, B, D)
        closeness, row = nearest(around.reshape(height * width, side**2 * images, -1), self.bank, self.squares)
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
        products = torch.baddbmm(squares[:, some].unsqueeze(1), vectors, patches[:, some].transpose(1, 2), alpha=-2)
        closeness, row = products.min(dim=2)
        found.append((closeness, row + first))
    closeness, row = (torch.stack(values) for values in zip(*found, strict=True))
    best = closeness.argmin(dim=0, keepdim=True)
    return closeness.gather(0, best).squeeze(0), row.gather(0, best).squeeze(0)


def greedy_coreset(candidates: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Rows (cells, size) of the patches chosen one after another, each the farthest from those chosen before (eq. 5).

    Distances are those of random projections of the vectors. The first is farthest from ten random patches in the mean;
    that mean also counts as each patch's distance from what is chosen, as in the authors' code.

    Args:
        candidates: (cells, N, D).
    """
    cells, count, values = candidates.shape
    if values > PROJECTED:
        projection = torch.randn(values, PROJECTED, generator=generator) / PROJECTED**0.5
        candidates = candidates @ projection.to(candidates)
    squares = candidates.square().sum(dim=2)
    cell = torch.arange(cells, device=candidates.device)

    def squared_distances(centres: Tensor) -> Tensor:
        """(cells, N, centres) of the centres (cells, centres, D)."""
        others = centres.square().sum(dim=2).unsqueeze(1)
        products = torch.baddbmm(others, candidates, centres.transpose(1, 2), alpha=-2)
        return products.add_(squares.unsqueeze(2)).clamp_min_(0)

    starts = torch.randperm(count, generator=generator)[:STARTS].to(candidates.device)
    distances = squared_distances(candidates[:, starts]).sqrt().mean(dim=2).square()
    chosen = torch.empty(cells, size, dtype=torch.int64, device=candidates.device)
    for i in range(size):
        chosen[:, i] = distances.argmax(dim=1)
        latest = candidates[cell, chosen[:, i]].unsqueeze(1)
        distances = torch.minimum(distances, squared_distances(latest).squeeze(2))
    return chosen


def k_means(candidates: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Centres (cells, size, D) of the candidates (cells, N, D) by Lloyd's algorithm, from a random choice of them.

    A centre to which nothing is nearest stays where it is.
    """
    first = torch.randperm(candidates.shape[1], generator=generator)[:size].to(candidates.device)
    return torch.cat([_lloyd(some, some[:, first]) for some in candidates.split(CELLS_AT_ONCE)])


def _lloyd(candidates: Tensor, centres: Tensor) -> Tensor:
    for _ in range(ROUNDS):
        squares = centres.square().sum(dim=2)
        row = torch.cat([nearest(part, centres, squares)[1] for part in candidates.split(ROWS_AT_ONCE, dim=1)], dim=1)
        count = torch.zeros_like(squares).scatter_add_(1, row, torch.ones_like(row, dtype=squares.dtype)).unsqueeze(2)
        total = torch.zeros_like(centres).scatter_add_(1, row.unsqueeze(2).expand_as(candidates), candidates)
        centres = torch.where(count > 0, total / count.clamp_min(1), centres)
    return centres
