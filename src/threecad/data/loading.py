"""Decode once: images and masks as memory-mapped uint8 arrays that every later epoch, method and evaluation shares.

A pack is one `.npy` file in the cache, named by the content of its files, the resize rule and the format: a changed
file gives another pack. Packs are written to a temporary name and renamed, so that a killed run leaves nothing
half-written and two processes may build the same pack at once. A small database remembers the hash of each file for as
long as its size and times stay the same, so that a second run reads no image at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threecad.cache import cache_folder
from threecad.data.hashes import Progress, content_hashes
from threecad.data.readers import check_sizes
from threecad.errors import DataError, FileError
from threecad.files import replacing, sweep, write_json
from threecad.framing import Framing
from threecad.images import Decoding, image_size, limit_of, read_image, read_mask
from threecad.records import Sample
from threecad.registration import NOWHERE_ELSE, Offset
from threecad.threads import ordered

RULE = "pillow bilinear antialiased square; masks nearest; 2"
"""Version of the rule that makes pixels out of files; part of each pack's key."""

_OURS = re.compile(r"[0-9a-f]{32}\.(npy|json)|hashes\.sqlite(-journal|-wal|-shm)?|\.threecad-\w+")
"""Names under which this file writes into the cache."""


A_DAY_S = 86_400
"""Age from which what a killed process left half-built is removed; another process may still be at younger ones."""


@dataclass(frozen=True)
class Pack:
    """Decoded pixels in the cache."""

    path: Path
    category: str
    kind: str  # images | masks
    count: int
    size: tuple[int, int]
    bytes: int


class Rows:
    """Chosen rows of a pack, (N, H, W, 3) uint8, read when they are indexed.

    Args:
        pack: (P, H, W, 3).
        chosen: indices of N of its rows.
        inside: (F, H, W) of bool, where in each of F frames the region of interest is; row P shows frame P mod F.
        frames: F; those of an image follow each other.
    """

    def __init__(self, pack: np.ndarray, chosen: np.ndarray, inside: np.ndarray | None = None, frames: int = 1) -> None:
        self.pack, self.chosen, self.inside, self.frames = pack, chosen, inside, frames

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.pack[self.chosen[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.pack[row] for row in self.chosen)

    def of_place(self, place: int | None) -> Rows:
        """That frame of every image; all rows for None."""
        return self if place is None else Rows(self.pack, self.chosen[place :: self.frames], self.inside)

    def inside_of(self, index: np.ndarray) -> np.ndarray | None:
        """Where the region of interest is in those rows, (B, H, W) of bool; None where there is none."""
        return None if self.inside is None else self.inside[self.chosen[index] % len(self.inside)]


def load_images(
    samples: Sequence[Sample], size: tuple[int, int], progress: Progress | None = None, decoding: Decoding | None = None
) -> np.ndarray:
    """Images of the samples, memory-mapped (N, H, W, 3) uint8 RGB, each resized as a whole.

    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
    """
    return load_frames(samples, Framing(size), progress, decoding)[:, 0]


def load_frames(
    samples: Sequence[Sample],
    framing: Framing,
    progress: Progress | None = None,
    decoding: Decoding | None = None,
) -> np.ndarray:
    """What a network sees of each sample, memory-mapped (N, F, H, W, 3) uint8 RGB: F frames of one size.

    Args:
        decoding: how files become pixels, as keywords of `read_image`.

    Raises:
        DataError: an image cannot be read, has another number of frames than the first, or the cache cannot be written.
    """
    decoding = decoding or {}
    bits = [f"{decoding['bits']} bits"] if "bits" in decoding else []
    rule = "; ".join([RULE, *bits, *([] if framing.only_resizes else [framing.key])])
    count = len(framing.boxes(image_size(samples[0].image, **limit_of(decoding)))) if samples and framing.tiles else 1

    def read(sample: Sample) -> np.ndarray:
        try:
            frames = framing.frames(read_image(sample.image, **decoding)).pixels
        except DataError as error:
            raise DataError(str(error) if str(sample.image) in str(error) else f"{sample.image}: {error}") from None
        if len(frames) != count:
            raise DataError(
                f"{sample.image}: expected {count} frames as of the other parts, found {len(frames)};\n"
                "where sizes differ, set the number of tiles (data.tiles) instead of their size"
            )
        return frames

    return _load("images", rule, samples, framing.image_size, (count,), (3,), read, progress)


def load_offsets(samples: Sequence[Sample], framing: Framing, decoding: Decoding | None = None) -> list[Offset]:
    """How far the part of each sample lies off the golden one, as `load_frames` has moved it.

    Raises:
        DataError: as `load_frames`.
    """
    golden = framing.golden
    if golden is None:
        return [NOWHERE_ELSE] * len(samples)
    return [golden.offset(pixels) for pixels in load_images(samples, golden.size, decoding=decoding)]


def load_masks(
    samples: Sequence[Sample], size: tuple[int, int], progress: Progress | None = None, decoding: Decoding | None = None
) -> np.ndarray:
    """Masks of the samples, memory-mapped (N, H, W) uint8 of 0 and 1; all zero for a sample without one.

    Raises:
        DataError: a mask cannot be read or has another size than its image, or the cache cannot be written.
    """

    def read(sample: Sample) -> np.ndarray:
        if sample.mask is None:
            return np.zeros(size, np.uint8)
        check_sizes(sample, **limit)
        return read_mask(sample.mask, size, more=sample.more_masks, **limit)

    limit = limit_of(decoding or {})
    return _load("masks", RULE, samples, size, (), (), read, progress)


def packs() -> list[Pack]:
    """The packs in the cache."""
    found = []
    for entry in sorted(cache_folder("pixels").glob("*.json")):
        try:
            record = json.loads(entry.read_text(encoding="utf-8"))
            path = entry.with_suffix(".npy")
            size = (int(record["size"][0]), int(record["size"][1]))
            found.append(Pack(path, record["category"], record["kind"], record["count"], size, path.stat().st_size))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not an entry of ours, or its pack is gone
    return found


def clear_packs() -> int:
    """Bytes freed by removing all packs and remembered hashes from the cache; what is not ours stays.

    Raises:
        DataError: a file cannot be removed.
    """
    folder = cache_folder("pixels")
    try:
        ours = [entry for entry in folder.iterdir() if _OURS.fullmatch(entry.name)] if folder.is_dir() else []
        freed = sum(_remove(entry) for entry in ours)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise DataError(f"cannot clear the cache {folder}: {error.strerror or error}") from None
    return freed


def _remove(entry: Path) -> int:
    """Bytes freed by removing a file or a folder; a link is removed, not followed."""
    if entry.is_dir() and not entry.is_symlink():
        freed = sum(_remove(inside) for inside in entry.iterdir())
        entry.rmdir()
    else:
        freed = entry.lstat().st_size
        entry.unlink()
    return freed


def _load(
    kind: str,
    rule: str,
    samples: Sequence[Sample],
    size: tuple[int, int],
    frames: tuple[int, ...],
    channels: tuple[int, ...],
    read: Callable[[Sample], np.ndarray],
    progress: Progress | None,
) -> np.ndarray:
    if not samples:
        return np.zeros((0, *frames, *size, *channels), np.uint8)
    files = [
        path
        for sample in samples
        for path in ([sample.image, sample.mask, *sample.more_masks] if kind == "masks" else [sample.image])
    ]
    hashes = iter(content_hashes([path for path in files if path is not None]))
    contents = [next(hashes) if path is not None else "-" for path in files]
    key = hashlib.sha256(json.dumps([rule, kind, size, contents]).encode()).hexdigest()[:32]
    path = cache_folder("pixels") / f"{key}.npy"
    shape = (len(samples), *frames, *size, *channels)
    if not _is_pack(path, shape):
        about = {"category": samples[0].category, "kind": kind, "count": len(samples), "size": size}
        _write_pack(path, shape, about, ordered(read, samples), progress)
    return np.load(path, mmap_mode="r")


def _is_pack(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a whole pack of this shape lies at `path`; a damaged one counts as none."""
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _write_pack(
    path: Path, shape: tuple[int, ...], about: dict[str, Any], rows: Iterable[np.ndarray], progress: Progress | None
) -> None:
    """Write rows one after another, never through a memory map: a full disk is then an error, not a crash."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            sweep(path.parent, older_than_s=A_DAY_S)
            header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, row in enumerate(rows, start=1):
                file.write(row.tobytes())
                if progress:
                    progress(done, shape[0])
        write_json(path.with_suffix(".json"), about)
    except FileError as error:
        raise DataError(
            f"cannot keep decoded images, {int(np.prod(shape)) / 1e9:.2f} GB: {error}\n"
            "Set THREECAD_CACHE to a writable folder with room, or free some with `threecad data cache --clear`."
        ) from None
