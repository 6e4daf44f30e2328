"""The paper's Fig. 5 from the maps that a benchmark keeps of a few parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from threecad.benchmark.tables import in_order
from threecad.errors import RunError, SettingsError, did_you_mean
from threecad.files import replacing, whole_files
from threecad.methods import METHODS
from threecad.report.sheet import DPI, Maps, compose


def draw_sheet(folders: Sequence[Path], file: Path, methods: Sequence[str] = ()) -> None:
    """Write the sheet of some methods, of all without any, as PNG or PDF.

    Raises:
        SettingsError: a file of another kind, or a method that was not run.
        RunError: no maps, a file of maps that is damaged, or no part that all methods were run on.
    """
    if file.suffix.lower() not in (".png", ".pdf"):
        raise SettingsError(f"expected a file that ends in .png or .pdf for the sheet, found {file}")
    maps = read_maps(folders)
    for method in methods:
        if method not in maps:
            raise SettingsError(f"no maps of '{method}' in {folders[0]}{did_you_mean(method, maps)}")
    sheet = compose({_title(line): maps[line] for line in methods or _in_order(maps)})
    with replacing(file) as temporary:
        sheet.save(temporary, dpi=(DPI, DPI), resolution=DPI)


def read_maps(folders: Sequence[Path]) -> dict[str, Maps]:
    """The maps of each method (with its variant), of the lowest seed that was run."""
    found: dict[str, Maps] = {}
    files = sorted(file for folder in folders for file in whole_files(folder / "maps", ".npz"))
    if not files:
        raise RunError(
            f"expected maps of a benchmark in {folders[0] / 'maps'}, found none; `threecad benchmark` makes them"
        )
    for file in files:
        of_method = found.setdefault(file.parents[1].name, {})
        try:
            with np.load(file, allow_pickle=False) as arrays:
                for name in arrays.files:
                    part, _, kind = name.rpartition("/")
                    of_method.setdefault(part, {}).setdefault(kind, arrays[name])
        except (OSError, ValueError, BadZipFile) as error:
            raise RunError(f"{file} is damaged: {error}; remove its row and run the benchmark again") from None
    return found


def write_maps(file: Path, maps: Maps) -> None:
    """Write the maps of one job as `read_maps` finds them."""
    arrays = {f"{part}/{kind}": array for part, of_part in maps.items() for kind, array in of_part.items()}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _in_order(lines: Iterable[str]) -> list[str]:
    """Methods, with their variants, in the paper's order."""
    order = in_order({line.partition("+")[0] for line in lines})
    return sorted(lines, key=lambda line: (order.index(line.partition("+")[0]), line))


def _title(line: str) -> str:
    """`CFRG (ours)`, with the variant beneath it."""
    method, _, rest = line.partition("+")
    return "\n".join(filter(None, (METHODS.paper(method).name, rest.replace("+", "\n"))))
