"""Photographs that were taken or saved twice: files of equal bytes, and pictures that look the same in their details.

Good parts of one kind look alike by themselves, so a likeness counts only in what is particular to an image: its
details on a raster of 64×64, less the median of the whole category. A picture that was saved again, larger, smaller or
compressed, keeps them; another part in the same pose does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

HASH_SIDE = 16
RASTER = 64
MOST_BITS_APART = 24
"""Bits of the 256 of a difference hash in which two pictures of one motif may differ."""

LEAST_CORRELATION = 0.9
"""Correlation of the particular details from which on two pictures count as one."""

FEW = 8  # of fewer images the median is no common look but one of them: nothing is said of their likeness

_ROWS = 256  # compared with all others at a time, which bounds the memory


class Look(NamedTuple):
    """What is kept of an image to compare it: 8 kB."""

    bits: np.ndarray  # (4,) uint64: whether each of 16×16 fields is brighter than its left neighbour
    details: np.ndarray  # (4096,) float16 grey levels, of 64×64 fields less the mean of 5×5 around each


def look_of(pixels: np.ndarray) -> Look:
    """The look of an image (H, W, 3) uint8."""
    from scipy import ndimage

    grey = Image.fromarray(pixels).convert("L")
    fields = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)).astype(np.int16)
    raster = np.asarray(grey.resize((RASTER, RASTER), Image.Resampling.BOX)).astype(np.float32)
    details = raster - ndimage.uniform_filter(raster, 5)
    bits = np.packbits(fields[:, 1:] > fields[:, :-1]).view(np.uint64)
    return Look(bits, details.ravel().astype(np.float16))


def groups_alike(looks: Sequence[Look]) -> list[list[int]]:
    """Indices of pictures that look the same, a list a group; pictures unlike all others are in none.

    Every member is near to at least one other of its group: a chain of pictures, each like the next, is one group.
    """
    if len(looks) < FEW:
        return []
    group = list(range(len(looks)))

    def leader(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for one, other in _pairs(looks):
        group[max(leader(one), leader(other))] = min(leader(one), leader(other))
    members: dict[int, list[int]] = {}
    for index in range(len(looks)):
        members.setdefault(leader(index), []).append(index)
    return [found for found in members.values() if len(found) > 1]


def _pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Indices of every two pictures that look the same, the smaller first."""
    bits = np.stack([look.bits for look in looks])
    details = np.stack([look.details for look in looks])
    details = details - np.median(details, axis=0)
    for start in range(0, len(looks), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = np.bitwise_count(bits[rows, None] ^ bits[None, start:]).sum(axis=2)
        near = apart <= MOST_BITS_APART
        columns = np.flatnonzero(near.any(axis=0))
        correlation = _unit(details[rows]) @ _unit(details[start + columns]).T
        for row, column in np.argwhere(near[:, columns] & (correlation >= LEAST_CORRELATION)):
            one, other = start + int(row), start + int(columns[column])
            if one < other:
                yield one, other


def _unit(details: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row without any detail stays 0 and is like no other."""
    details = details.astype(np.float32)
    return details / np.maximum(np.linalg.norm(details, axis=1, keepdims=True), 1e-6)
