"""Puts the tables of the committed rows into the documents anew: those of a folder that a document shows.

python bench/results.py
"""

from __future__ import annotations

import re
from pathlib import Path

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.rows import read_rows

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/results.md", "docs/trials.md")
SHOWN = re.compile(r"(<!-- tables of (\S+) -->)(.*?)(<!-- end of tables -->)", flags=re.DOTALL)


def main() -> None:
    for name in DOCUMENTS:
        document = ROOT / name
        document.write_text(SHOWN.sub(_anew, document.read_text(encoding="utf-8")), encoding="utf-8")


def _anew(shown: re.Match[str]) -> str:
    """The tables of the folder whose titles are shown; all, where none is."""
    start, folder, before, end = shown.groups()
    blocks = re.split(r"\n\n(?=\*\*|\| method \|)", write_tables(read_rows([ROOT / folder])).strip())
    kept = [block for block in blocks if block.partition("\n")[0] in before]
    return "\n\n".join([start, *(kept or blocks), end])


if __name__ == "__main__":
    main()
