"""Categories and samples from folders, whatever their layout: one reader a file; the first to know it reads it.

A reader tells nothing but where the images and masks of a category lie and what they show; from here on a `Category`
is plain data. A mask is defect wherever it is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from threecad.data.category import Category, check_sizes, exclude, fingerprint
from threecad.data.folders import Problem, entries_of, enumerate_names
from threecad.data.readers import btad, mvtec_ad2, mvtec_loco, plain, real_iad, tree, visa
from threecad.errors import DataError, did_you_mean

__all__ = [
    "READERS",
    "Category",
    "Problem",
    "Reader",
    "check_sizes",
    "exclude",
    "fingerprint",
    "list_categories",
    "read_categories",
    "read_category",
    "reader_of",
    "scan_category",
]


class Reader(Protocol):
    """Knows one layout."""

    @property
    def title(self) -> str:
        """The sets that are laid out so."""

    def recognises(self, root: Path) -> bool:
        """Whether there is a category of this layout at `root`."""

    def names(self, root: Path) -> list[str]:
        """Names of the categories at `root`, sorted."""

    def scan(self, root: Path, name: str) -> tuple[Category, list[Problem]]:
        """The category as far as it is in order, and everything that is not."""


READERS: tuple[Reader, ...] = (
    real_iad.READER,
    visa.READER,
    mvtec_ad2.READER,
    mvtec_loco.READER,
    btad.READER,
    tree.READER,
    plain.READER,
)
"""Strictest first: what one recognises, the later ones are not asked."""


def reader_of(root: Path) -> Reader:
    """The reader for the layout at `root`.

    Raises:
        DataError: there is no such folder, or nothing in it that a reader recognises.
    """
    entries = entries_of(root)
    for reader in READERS:
        if reader.recognises(root):
            return reader
    raise DataError(
        f"{root} holds no data: expected {Path('CATEGORY', 'train', 'good', '*.png')}, or images\n"
        f"found {enumerate_names([entry.name for entry in entries])}"
    )


def list_categories(root: Path) -> list[str]:
    """Sorted names of the categories at `root`; one name where `root` is a category or a plain folder of images.

    Raises:
        DataError: there is no such folder, or it holds neither categories nor images.
    """
    return reader_of(root).names(root)


def read_category(root: Path, name: str | None = None) -> Category:
    """The category called `name` at `root`; without a name, the only one there.

    Raises:
        DataError: an unknown name, several categories and no name, or a category that is not in order; names the
            first file that is not, and how many others there are.
    """
    names = list_categories(root)
    if name is None and len(names) > 1:
        raise DataError(f"expected the name of a category, found several in {root}: {enumerate_names(names)}")
    return read_categories(root, [names[0] if name is None else name])[0]


def read_categories(root: Path, names: Sequence[str] = ()) -> list[Category]:
    """The categories called `names`, in that order; all of them, sorted, when none is named.

    Raises:
        DataError: as `read_category`.
    """
    reader = reader_of(root)
    known = reader.names(root)
    return [_in_order(*_scan(reader, root, name, known)) for name in dict.fromkeys(names) or known]


def scan_category(root: Path, name: str) -> tuple[Category, list[Problem]]:
    """The category as far as it is in order, and everything that is not.

    Raises:
        DataError: there is no such category, or a folder cannot be listed.
    """
    reader = reader_of(root)
    return _scan(reader, root, name, reader.names(root))


def _scan(reader: Reader, root: Path, name: str, known: Sequence[str]) -> tuple[Category, list[Problem]]:
    if name not in known:
        raise DataError(f"no category '{name}' in {root}{did_you_mean(name, known)}")
    return reader.scan(root, name)


def _in_order(category: Category, problems: list[Problem]) -> Category:
    stopping = [problem for problem in problems if problem.stops]
    if stopping:
        others = f"; and {len(stopping) - 1} more, see `threecad data verify`" if len(stopping) > 1 else ""
        raise DataError(f"{stopping[0].path}: {stopping[0].what}{others}")
    return category
