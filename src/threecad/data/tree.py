"""Categories and samples from folders.

    ROOT/CATEGORY/train/good/NAME.png
                  test/good/NAME.png          test/DEFECT/NAME.png
                  ground_truth/DEFECT/NAME.png or NAME_mask.png

`ROOT` may also be a category itself, or a plain folder of images, which are then all good and for training.

Names are sorted. Hidden files and files that are no images (`Thumbs.db`, `types.csv`) are ignored, as is
`ground_truth/good`. A folder inside a folder of images is ignored unless images lie in it, which would go missing
unsaid. Nothing is searched recursively, so a link back to a parent does no harm. No image is opened here, except by
`check_sizes`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from threecad.errors import DataError, did_you_mean
from threecad.images import IMAGE_SUFFIXES, image_size
from threecad.records import GOOD, Sample, Split

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # JPEG would blur the border of a defect into the normal pixels


@dataclass(frozen=True)
class Category:
    """One kind of part: its good images to learn from, and the images to test on."""

    name: str
    root: Path  # the data root; paths in lists and results are relative to it
    train: tuple[Sample, ...]  # never empty
    test: tuple[Sample, ...]
    has_masks: bool  # every defect in `test` has one; without, there are image metrics only
    is_plain: bool  # a folder of images without a tree

    @property
    def folder(self) -> Path:
        """The folder that holds `train` and `test`; of a plain category, the images themselves."""
        return self.root if self.is_plain else self.train[0].image.parents[2]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Training samples, then test samples."""
        return self.train + self.test

    @property
    def defects(self) -> tuple[str, ...]:
        """Names of the defect types in `test`, sorted."""
        return tuple(sorted({sample.defect for sample in self.test if sample.is_defect}))

    def path_in_root(self, path: Path) -> str:
        """`path` relative to the data root, with forward slashes on every system."""
        return path.relative_to(self.root).as_posix()


class Problem(NamedTuple):
    """Something in a tree that keeps it from being used."""

    path: Path
    what: str


def list_categories(root: Path) -> list[str]:
    """Sorted names of the categories at `root`; one name where `root` is a category or a plain folder of images.

    Raises:
        DataError: there is no such folder, or it holds neither categories nor images.
    """
    entries = _entries(root)
    if _is_category(root):
        return [root.resolve().name]
    names = [entry.name for entry in entries if _is_category(Path(entry))]
    if names:
        return names
    if any(_is_image(entry) for entry in entries):
        return [root.resolve().name]
    raise DataError(
        f"{root} holds no data: expected CATEGORY{os.sep}{Split.TRAIN}{os.sep}{GOOD}{os.sep}*.png, or images\n"
        f"found {_enumerate([entry.name for entry in entries])}"
    )


def read_category(root: Path, name: str | None = None) -> Category:
    """The category called `name` at `root`; without a name, the only one there.

    Raises:
        DataError: an unknown name, several categories and no name, or a tree that is not in order; names the first
            file that is not, and how many others there are.
    """
    names = list_categories(root)
    if name is None and len(names) > 1:
        raise DataError(f"expected the name of a category, found several in {root}: {_enumerate(names)}")
    category, problems = scan_category(root, names[0] if name is None else name)
    if problems:
        others = f"; and {len(problems) - 1} more, see `threecad data verify`" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].path}: {problems[0].what}{others}")
    return category


def read_categories(root: Path, names: Sequence[str] = ()) -> list[Category]:
    """The categories called `names`, in that order; all of them, sorted, when none is named.

    Raises:
        DataError: as `read_category`.
    """
    return [read_category(root, name) for name in dict.fromkeys(names) or list_categories(root)]


def scan_category(root: Path, name: str) -> tuple[Category, list[Problem]]:
    """The category as far as it is in order, and everything that is not.

    Raises:
        DataError: there is no such category, or a folder cannot be listed.
    """
    names = list_categories(root)
    if name not in names:
        raise DataError(f"no category '{name}' in {root}{did_you_mean(name, names)}")
    problems: list[Problem] = []
    is_plain = not _is_category(root) and not _is_category(root / name)
    folder = root / name if not is_plain and not _is_category(root) else root

    good = root if is_plain else folder / Split.TRAIN / GOOD
    train = [Sample(path, None, name, GOOD, Split.TRAIN) for path in _images(good, problems).values()]
    if not train:
        problems.append(Problem(good, f"expected good images ({', '.join(IMAGE_SUFFIXES)}), found none"))
    test: list[Sample] = []
    if not is_plain:
        types = {entry.name: Path(entry) for entry in _folders(folder / Split.TEST)}
        for defect in types.keys() | {entry.name for entry in _folders(folder / "ground_truth")}:
            images = _images(types[defect], problems) if defect in types else {}
            masks = {} if defect == GOOD else _masks(folder / "ground_truth" / defect, images, problems)
            test += [Sample(path, masks.get(stem), name, defect, Split.TEST) for stem, path in images.items()]
    test.sort(key=lambda sample: (sample.defect, sample.image.name))

    has_masks = any(sample.mask for sample in test)
    if has_masks:
        problems += [
            Problem(sample.image, f"expected a mask ground_truth/{sample.defect}/{sample.image.stem}.png, found none")
            for sample in test
            if sample.is_defect and sample.mask is None
        ]
    return Category(name, root, tuple(train), tuple(test), has_masks, is_plain), problems


def check_sizes(sample: Sample) -> None:
    """Nothing, where the sample has no mask or one of its image's size; reads only headers.

    Raises:
        DataError: the sizes differ, or a file cannot be read.
    """
    if sample.mask is None:
        return
    image, mask = image_size(sample.image), image_size(sample.mask)
    if image != mask:
        raise DataError(
            f"{sample.mask}: expected the size of its image, {image[0]}×{image[1]}, found {mask[0]}×{mask[1]}"
        )


def exclude(category: Category, list_file: Path) -> Category:
    """The category without the images listed in a text file, one path relative to the data root a line.

    Blank lines and lines that start with `#` are skipped, as are images of other categories of the same root.

    Raises:
        DataError: the file cannot be read, a line names no image (with the nearest that is), or no good training
            image is left.
    """
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a text file of image paths at {list_file}: {error}") from None
    known = {category.path_in_root(sample.image): sample for sample in category.samples}
    excluded = set()
    for number, line in enumerate(lines, start=1):
        path = line.strip().replace("\\", "/").removeprefix("./")
        if not path or path.startswith("#"):
            continue
        if path in known:
            excluded.add(known[path])
        elif not _is_in_other_category(path, category):
            near = difflib.get_close_matches(path, known, n=1) or sorted(known)[:1]
            raise DataError(
                f"{list_file}, line {number}: expected an image path relative to {category.root}\n"
                f"found '{path}'; the nearest is '{near[0]}'"
            )
    train = tuple(sample for sample in category.train if sample not in excluded)
    if not train:
        raise DataError(f"{list_file} leaves category '{category.name}' without a good training image")
    return replace(category, train=train, test=tuple(sample for sample in category.test if sample not in excluded))


def fingerprint(samples: Iterable[Sample], sha256_of: Callable[[Path], str]) -> str:
    """16 hex digits that change with any image or mask, its place in the tree or its bytes; not with the root."""
    lines = []
    for sample in samples:
        mask = sha256_of(sample.mask) if sample.mask else "-"
        place = f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}"
        lines.append(f"{place}\t{sha256_of(sample.image)}\t{mask}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:16]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise DataError(f"expected a folder of images at {folder}, found no such folder") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _is_folder(entry)] if folder.is_dir() else []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_category(folder: Path) -> bool:
    try:
        return (folder / Split.TRAIN / GOOD).is_dir()
    except OSError:  # a folder that may not be entered
        return False


def _is_image(entry: os.DirEntry[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    return Path(entry.name).suffix.lower() in suffixes and not _is_folder(entry)


def _images(folder: Path, problems: list[Problem], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Images by stem, sorted by name; a stem that stands twice and a folder with images in it are problems."""
    images: dict[str, Path] = {}
    for entry in _entries(folder):
        path = Path(entry)
        if _is_image(entry, suffixes):
            if path.stem in images:
                problems.append(Problem(path, f"expected one image of each name, found {images[path.stem].name} too"))
            images.setdefault(path.stem, path)
        elif _is_folder(entry) and any(_is_image(inner, suffixes) for inner in _entries(path)):
            problems.append(Problem(path, f"expected images directly in {folder}, found some in a folder inside it"))
    return images


def _masks(folder: Path, images: dict[str, Path], problems: list[Problem]) -> dict[str, Path]:
    """Masks by the stem of their image; a mask that belongs to no image, or to one that has another, is a problem."""
    masks: dict[str, Path] = {}
    for stem, path in (_images(folder, problems, MASK_SUFFIXES) if folder.is_dir() else {}).items():
        owner = stem if stem in images else stem.removesuffix("_mask")
        if owner not in images:
            problems.append(Problem(path, f"expected an image of this name in {Split.TEST}/{folder.name}, found none"))
        elif owner in masks:
            problems.append(Problem(path, f"expected one mask of each image, found {masks[owner].name} too"))
        else:
            masks[owner] = path
    return masks


def _is_in_other_category(path: str, category: Category) -> bool:
    first = path.split("/")[0]
    return first != category.name and _is_category(category.root / first) and (category.root / path).is_file()


def _enumerate(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
