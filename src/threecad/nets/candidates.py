"""Patches of good parts, gathered into a table of bounded size by sums alone.

A phase of statistics only adds: over batches, over processes, in any order. So that adding fills a table instead of
blurring it, each part gets places of its own in the table, which follow from its pixels and not from when it comes:

1. a first phase counts addresses, each a hash of a part's pixels, and so learns which parts there are;
2. a second one adds each part's vectors at the part's rank among those addresses, turned by another random amount at
   each position. Where the table has fewer rows than there are parts, each position keeps as many of them as it has
   rows, another random choice at each.

Parts that are alike to the pixel share an address and are kept once. Two others share one by chance, and are then kept
as their mean, about once in so many fits as there are addresses a pair of parts: with 700 parts, once in 17.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ADDRESS_BITS = 22
MOST_PARTS = 4096  # that are chosen from; of more, a random choice
NOBODY = 2**ADDRESS_BITS  # beyond every address
CELLS_AT_ONCE = 64  # of the table, while its sums become means


class Candidates(nn.Module):
    """Which parts there are, and the table (positions, rows, D) of their patches.

    Args:
        positions: P, patches of a part.
        values: D, length of a patch's vector.
        most: patches in the table at most; but every position gets one row at least.
    """

    key: Tensor  # () what the hash and all random choices follow from; drawn with the detector's own weights
    addresses: Tensor  # (MOST_PARTS,) of the parts, ascending; `NOBODY` where there are no more

    def __init__(self, positions: int, values: int, most: int) -> None:
        super().__init__()
        self.positions, self.values = positions, values
        self.most_rows = max(1, most // positions)
        self.register_buffer("key", torch.randint(2**62, ()))
        self.register_buffer("addresses", torch.full((MOST_PARTS,), NOBODY))

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return int((self.addresses < NOBODY).sum())

    def generator(self) -> torch.Generator:
        """A generator on the CPU, at the same place each time."""
        return torch.Generator().manual_seed(int(self.key))

    def empty_addresses(self) -> dict[str, Tensor]:
        """How often each address was seen: never."""
        return {"seen": self.key.new_zeros(2**ADDRESS_BITS, dtype=torch.float64)}

    def count_addresses(self, sums: Mapping[str, Tensor], image: Tensor) -> None:
        """Add images (B, 3, H, W) in [0, 1] to the sums, in place."""
        address = self._addresses_of(image)
        sums["seen"].index_add_(0, address, torch.ones_like(address, dtype=torch.float64))

    def conclude_addresses(self, sums: Mapping[str, Tensor]) -> None:
        """Keep the lowest addresses, which are as random a choice as any."""
        found = sums["seen"].nonzero().squeeze(1)[:MOST_PARTS]
        self.addresses.fill_(NOBODY)
        self.addresses[: len(found)] = found

    def empty_table(self) -> dict[str, Tensor]:
        """The empty table of patches, float64, and how many parts each row has got."""
        rows = min(self.most_rows, self.parts)
        shapes = {"patches": (self.positions, rows, self.values), "count": (self.positions, rows)}
        return {name: self.key.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def parts_of(self, image: Tensor) -> Tensor:
        """Which of the parts each of the images (B, 3, H, W) shows, (B,); -1 for none of them."""
        address = self._addresses_of(image)
        rank = torch.searchsorted(self.addresses[: self.parts], address)
        return rank.where(self.addresses[rank.clamp_max(MOST_PARTS - 1)] == address, -1)

    def rows_of(self, image: Tensor) -> Tensor:
        """The table's row (B, P) of each patch of images (B, 3, H, W); -1 where it has none."""
        part, parts = self.parts_of(image).unsqueeze(1), max(self.parts, 1)
        turn = torch.randint(parts, (self.positions,), generator=self.generator()).to(part.device)
        row = (part + turn) % parts
        return row.where((row < self.most_rows) & (part >= 0), -1)

    def add(self, sums: Mapping[str, Tensor], image: Tensor, vectors: Tensor) -> None:
        """Add the patches (B, P, D) of images (B, 3, H, W) where they have a row, in place."""
        row = self.rows_of(image)
        part, position = (row >= 0).nonzero(as_tuple=True)
        place = (position, row[part, position])
        sums["patches"].index_put_(place, vectors[part, position].double(), accumulate=True)
        sums["count"].index_put_(place, torch.ones_like(part, dtype=torch.float64), accumulate=True)

    @staticmethod
    def gathered(sums: Mapping[str, Tensor]) -> Tensor:
        """The table's patches, (P, rows, D) float32."""
        cells = zip(sums["patches"].split(CELLS_AT_ONCE), sums["count"].split(CELLS_AT_ONCE), strict=True)
        return torch.cat([(patches / count.clamp_min(1).unsqueeze(2)).float() for patches, count in cells])

    def _addresses_of(self, image: Tensor) -> Tensor:
        """(B,) of images (B, 3, H, W): the high bits of a random sum of their pixels, whole numbers from 0 to 255."""
        pixels = (image.float() * 255).round().long().flatten(1)
        factors = torch.randint(-(2**63), 2**63 - 1, pixels.shape[1:], generator=self.generator()).to(image.device)
        return ((pixels * factors).sum(dim=1) >> (64 - ADDRESS_BITS)) & (2**ADDRESS_BITS - 1)
