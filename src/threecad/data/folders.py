"""What lies in folders of images: the images, and whatever would otherwise go missing without a word."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from threecad.errors import DataError
from threecad.images import IMAGE_SUFFIXES

SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that storage devices and operating systems leave beside a user's; thumbnails in them are no parts."""

_OTHER = "webp avif gif heic heif jp2 j2k jfif jpe jxl pgm ppm pnm tga dng raw exr hdr npy dcm"
OTHER_PICTURES = frozenset(f".{suffix}" for suffix in _OTHER.split())
"""Suffixes of pictures that are not read; beside images they are named, since they may have been meant to count."""


class Problem(NamedTuple):
    """Something in a folder that is not as it should be."""

    path: Path
    what: str  # what was expected there and what was found, without the path
    stops: bool = True  # False: the category can be used, but perhaps not as it was meant


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name; nothing hidden and none of `SYSTEM_FOLDERS`.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not (entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS)]
    except FileNotFoundError:
        raise DataError(f"expected a folder of images at {folder}, found no such folder") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None
    return sorted(seen, key=lambda entry: entry.name)


def folders_in(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name, sorted; none where it is no folder itself."""
    if not is_folder(folder):
        return {}
    return {entry.name: folder / entry.name for entry in entries_of(folder) if _is_folder(entry)}


def is_folder(path: Path) -> bool:
    """Whether a folder lies at `path` and may be entered."""
    try:
        return path.is_dir()
    except OSError:  # a folder above it may not be entered
        return False


def has_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    return is_folder(folder) and any(_is_image(entry) for entry in entries_of(folder))


def walk_images(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Path]:
    """Images in a folder and below it, sorted within each folder.

    Left out are hidden files, `SYSTEM_FOLDERS`, and the folders in `leave_out` (resolved); no link to a folder is
    followed, so that a link back to a parent does no harm.

    Raises:
        DataError: a folder cannot be listed.
    """
    for entry in entries_of(folder):
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if path.resolve() not in leave_out:
                yield from walk_images(path, leave_out)
        elif _is_image(entry):
            yield path


def images_in(folder: Path, problems: list[Problem], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Images directly in a folder, sorted by name; what is left out and may have been meant to count is a problem."""
    images: list[Path] = []
    others: Counter[str] = Counter()
    for entry in entries_of(folder):
        path = folder / entry.name
        if _is_folder(entry):
            if _holds_images(path):
                problems.append(
                    Problem(path, f"expected images directly in {folder}, found some in a folder inside it")
                )
        elif not _is_image(entry, suffixes):
            others[path.suffix.lower()] += path.suffix.lower() in OTHER_PICTURES
        elif entry.is_symlink() and not path.exists():
            problems.append(Problem(path, f"expected an image, found a link to {path.readlink()}, which is not there"))
        else:
            images.append(path)
    problems += [
        Problem(folder, f"expected {_listed(suffixes)} images, found {count} of {suffix}; convert or remove them")
        for suffix, count in sorted(others.items())
        if count
    ]
    return images


def by_stem(images: Sequence[Path], problems: list[Problem]) -> dict[str, Path]:
    """Images by stem; a stem that stands twice is a problem, since a mask is found by it."""
    stems: dict[str, Path] = {}
    for path in images:
        if path.stem in stems:
            problems.append(Problem(path, f"expected one image of each name, found {stems[path.stem].name} too"))
        stems.setdefault(path.stem, path)
    return stems


def enumerate_names(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    return Path(entry.name).suffix.lower() in suffixes and not _is_folder(entry)


def _holds_images(folder: Path) -> bool:
    """Whether images lie in a folder or below it; a link is looked into, but not what lies below it."""
    if folder.is_symlink():
        return has_images(folder)
    return next(walk_images(folder), None) is not None


def _listed(suffixes: Sequence[str]) -> str:
    return ", ".join(suffix.removeprefix(".") for suffix in suffixes)
