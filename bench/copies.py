"""What near copies of test images among the training images are worth: rows with them, without them, and a control.

python bench/copies.py ROOT --out DIR --method padim --category ball_screw [--set data.textures=FOLDER]...

The control leaves out as many other good images, evenly spread, so that having fewer to learn from is told apart from
not having seen the test images. Rows, tables and the two lists lie in DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.plan import read_plan
from threecad.benchmark.rows import read_rows
from threecad.benchmark.run import run_plan
from threecad.data.audit import audit
from threecad.data.findings import write_exclusions
from threecad.data.readers import read_category
from threecad.files import write_text
from threecad.settings_layers import parse_pairs

PLAN = """
methods = {methods}
categories = {categories}
backbone = "embedded"

[settings.training]
preset = "quick"

[settings.data]
holdout = 0.0                          # a table needs no verdicts: every good part is learnt from

[variants.without-copies.data]
exclude = "without-copies.txt"

[variants.without-others.data]
exclude = "without-others.txt"

[variants.full]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--category", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    options = parser.parse_args()
    plan = options.out / "plan.toml"
    write_text(plan, PLAN.format(methods=options.method, categories=options.category))
    print("| set | training images | groups across the split | left out |\n|---|---|---|---|")
    copies = [copies_in(options.root, category) for category in options.category]
    write_exclusions(options.out / "without-copies.txt", options.root, [one for found in copies for one in found])
    others = [others_in(options.root, *pair) for pair in zip(options.category, copies, strict=True)]
    write_text(options.out / "without-others.txt", "\n".join(line for lines in others for line in lines) + "\n")
    rows = options.out / "benchmark"
    run_plan(read_plan(plan, data=options.root, settings=parse_pairs(options.pairs)), rows, notify=print)
    print(write_tables(read_rows([rows])))


def copies_in(root: Path, category: str) -> list:
    """Findings of the audit that name training images to leave out."""
    found = [finding for finding in audit(root / category) if finding.leave_out]
    left_out = {path for finding in found for path in finding.leave_out}
    print(f"| {category} | {len(read_category(root, category).train)} | {len(found)} | {len(left_out)} |")
    return found


def others_in(root: Path, category: str, copies: Sequence) -> list[str]:
    """Paths, relative to the root, of as many other training images, evenly spread over the sorted names."""
    left_out = {path for finding in copies for path in finding.leave_out}
    rest = sorted(one.image for one in read_category(root, category).train if one.image not in left_out)
    places = np.linspace(0, len(rest) - 1, len(left_out)).round().astype(int)
    return [rest[place].relative_to(root).as_posix() for place in places]


if __name__ == "__main__":
    main()
