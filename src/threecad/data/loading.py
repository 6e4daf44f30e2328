"""Decode once: images and masks as memory-mapped uint8 arrays that every later epoch, method and evaluation shares.

A pack is one `.npy` file in the cache, named by the content of its files, the resize rule and the format: a changed
file gives another pack. Packs are written to a temporary name and renamed, so that a killed run leaves nothing
half-written and two processes may build the same pack at once. A small database remembers the hash of each file for as
long as its size and times stay the same, so that a second run reads no image at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threecad.cache import cache_folder
from threecad.data.readers import check_sizes
from threecad.errors import DataError
from threecad.framing import Framing
from threecad.images import Decoding, image_size, limit_of, read_image, read_mask
from threecad.records import Sample
from threecad.threads import ordered

RULE = "pillow bilinear antialiased square; masks nearest; 2"
"""Version of the rule that makes pixels out of files; part of each pack's key."""

_OURS = re.compile(r"[0-9a-f]{32}\.(npy|json)|hashes\.sqlite(-journal|-wal|-shm)?|\.building-\w+")
"""Names under which this file writes into the cache."""

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


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
    """

    def __init__(self, pack: np.ndarray, chosen: np.ndarray, inside: np.ndarray | None = None) -> None:
        self.pack, self.chosen, self.inside = pack, chosen, inside

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.pack[self.chosen[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.pack[row] for row in self.chosen)

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
    rule = "; ".join([RULE, *bits, *([] if framing.is_plain else [framing.key])])
    count = len(framing.boxes(image_size(samples[0].image, **limit_of(decoding)))) if samples and framing.tiles else 1

    def read(sample: Sample) -> np.ndarray:
        try:
            frames = framing.frames(read_image(sample.image, **decoding))
        except DataError as error:
            raise DataError(str(error) if str(sample.image) in str(error) else f"{sample.image}: {error}") from None
        if len(frames) != count:
            raise DataError(
                f"{sample.image}: expected {count} frames as of the other parts, found {len(frames)};\n"
                "where sizes differ, set the number of tiles (data.tiles) instead of their size"
            )
        return frames

    return _load("images", rule, samples, framing.image_size, (count,), (3,), read, progress)


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


def content_hashes(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """SHA-256 of each file's bytes; a file of unchanged size and times is not read again.

    Args:
        progress: called for each file, and only where one has to be read.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    hashes: dict[Path, str] = {}
    with _Hashes() as known:
        for path in paths:
            if (sha256 := known.of(path)) is not None:
                hashes[path] = sha256
        missing = [path for path in dict.fromkeys(paths) if path not in hashes]
        for done, (path, entry) in enumerate(zip(missing, ordered(_hash, missing), strict=True), start=1):
            known.add(entry)
            hashes[path] = entry.sha256
            if progress:
                progress(done, len(missing))
    return [hashes[path] for path in paths]


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
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as building:
            pack, entry = Path(building) / "pack.npy", Path(building) / "entry.json"
            with pack.open("wb") as file:
                header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for done, row in enumerate(rows, start=1):
                    file.write(row.tobytes())
                    if progress:
                        progress(done, shape[0])
                file.flush()
                os.fsync(file.fileno())
            entry.write_text(json.dumps(about), encoding="utf-8")
            pack.replace(path)
            entry.replace(path.with_suffix(".json"))
    except OSError as error:
        gigabytes = int(np.prod(shape)) / 1e9
        raise DataError(
            f"cannot keep decoded images in {path.parent}: {error.strerror or error} ({gigabytes:.2f} GB needed)\n"
            "Set THREECAD_CACHE to a writable folder with room, or free some with `threecad data cache --clear`."
        ) from None


def _sweep(folder: Path, older_than_s: float = 86400) -> None:
    """Remove what a killed process left half-built more than a day ago."""
    for leftover in folder.glob(".building-*"):
        if time.time() - leftover.stat().st_mtime > older_than_s:
            shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class _Entry:
    """The hash of a file as it was at a moment."""

    name: bytes  # of the file behind every link: a name need not be UTF-8
    stamp: str  # size and times
    sha256: str


def _hash(path: Path) -> _Entry:
    """The file's name, stamp and hash.

    Raises:
        DataError: it is gone or cannot be read.
    """
    try:
        name, stamp = _name_and_stamp(path)
        with path.open("rb") as file:
            return _Entry(name, stamp, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise _unreadable(path, error) from None


def _name_and_stamp(path: Path) -> tuple[bytes, str]:
    state = path.stat()
    return os.fsencode(path.resolve()), f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _unreadable(path: Path, error: OSError) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return DataError(f"{path} cannot be read: {error.strerror or error}")
    if path.is_symlink():
        return DataError(f"{path} is a link to {path.readlink()}, which is not there; mend the link or remove it")
    return DataError(f"{path} was there a moment ago and is gone now")


class _Hashes:
    """Content hashes by file, size and times, in a database that several processes may use."""

    def __enter__(self) -> _Hashes:
        file = cache_folder("pixels") / "hashes.sqlite"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(file)
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                file.unlink()  # damaged, or another version's: it is only a memory
                self._open(file)
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"cannot use the cache {file.parent}: {error}; set THREECAD_CACHE to a writable folder"
            ) from None
        self.new: list[_Entry] = []
        return self

    def _open(self, file: Path) -> None:
        self.database = sqlite3.connect(file, timeout=60)
        self.database.execute("CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT)")
        self.known = {name: (stamp, sha256) for name, stamp, sha256 in self.database.execute("SELECT * FROM hashes")}

    def of(self, path: Path) -> str | None:
        """The hash of a file that has not changed since it was added; None for any other."""
        try:
            name, stamp = _name_and_stamp(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        known_stamp, sha256 = self.known.get(name, ("", ""))
        return sha256 if known_stamp == stamp else None

    def add(self, entry: _Entry) -> None:
        """Remember a hash, here and for later processes."""
        self.known[entry.name] = (entry.stamp, entry.sha256)
        self.new.append(entry)

    def __exit__(self, *exception: object) -> None:
        rows = [(entry.name, entry.stamp, entry.sha256) for entry in self.new]
        try:
            with self.database:
                self.database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            pass  # only a memory: the hashes are computed again next time
        finally:
            self.database.close()
