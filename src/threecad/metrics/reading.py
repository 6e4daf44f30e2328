"""How maps and masks are read: checked, copied, and let go of again."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from threecad.errors import MetricError


def require_reiterable(items: Iterable[Any], name: str) -> None:
    """Raises MetricError unless `items` can be gone through more than once."""
    if not hasattr(items, "__iter__") and not hasattr(items, "__getitem__"):
        raise MetricError(f"expected {name} as a list, an array or another re-iterable, found {type(items).__name__}")
    if hasattr(items, "__next__"):
        raise MetricError(
            f"expected {name} that can be gone through twice, found a one-shot {type(items).__name__};\n"
            "exact metrics find the defect pixels first and count the normal ones after that: "
            "give a list, an array, or an object whose __iter__ starts anew"
        )


def pairs(maps: Iterable[Any], masks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Maps and masks side by side; raises MetricError where one of them ends first."""
    missing = object()
    for index, (anomaly_map, mask) in enumerate(zip_longest(maps, masks, fillvalue=missing)):
        if anomaly_map is missing or mask is missing:
            fewer, more = ("maps", "masks") if anomaly_map is missing else ("masks", "maps")
            raise MetricError(f"expected as many maps as masks, found only {index} {fewer} and more {more}")
        yield anomaly_map, mask


def as_array(given: Any) -> np.ndarray:
    """Numbers of whatever kind as an array: also a tensor with a gradient, on another device, or in bfloat16."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if "bfloat16" in str(given.dtype) else given
    return np.asarray(given)


def as_map(index: int, given: Any) -> np.ndarray:
    """The map as an array (H, W) of numbers; raises MetricError for anything else."""
    anomaly_map = as_array(given)
    if anomaly_map.ndim != 2 or not anomaly_map.size or anomaly_map.dtype.kind not in "biuf":
        raise MetricError(f"expected a map (H, W) of numbers, found {_described(anomaly_map)} at image {index}")
    return anomaly_map


def as_mask(index: int, given: Any) -> np.ndarray:
    """The mask (H, W) as a bool array of its own."""
    mask = as_array(given)
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        raise MetricError(f"expected a mask (H, W) of bool, 0/1 or 0/255, found {_described(mask)} at image {index}")
    if mask.dtype.kind in "if" and not (mask >= 0).all():
        raise MetricError(f"expected a mask of 0 and positive values, found others at image {index}")
    return mask > 0


def _described(array: np.ndarray) -> str:
    return f"shape {array.shape} of type {array.dtype}" if array.dtype.kind != "O" else "no array"


def copied(index: int, anomaly_map: np.ndarray) -> np.ndarray:
    """Its finite values as an array of its own: what yields the maps may use its memory again."""
    values = np.array(anomaly_map, np.result_type(anomaly_map.dtype, np.float32), order="C")
    release_pages(anomaly_map)
    if not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)]
        raise MetricError(f"expected finite maps, found {wrong.size} times {wrong[0]} or the like at image {index}")
    return values


def release_pages(array: Any) -> None:
    """Let go of the memory behind an array on disk; the file stays, and is read again when it is asked for.

    Otherwise a pass over a memory-mapped file would leave all of it in the process. Copy-on-write maps are kept, since
    their pages hold changes that are nowhere else.
    """
    of_file = False
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            of_file = array.mode != "c"
        array = array.base
    if of_file and isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)
