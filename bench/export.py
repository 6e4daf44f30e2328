"""Fits every method on every set, exports each fit for both backends, and prints what the proofs say.

python bench/export.py ROOT/SET... [--methods padim cfrg] [--steps 100] [--runs DIR]

With `--runs`, fits are kept in DIR/METHOD-SET, and those that are there are taken as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import threecad
from threecad.errors import ThreeCADError
from threecad.export.bundling import export_run
from threecad.runs import RunFolder
from threecad.runtime.bundle import Bundle

BACKENDS = ("onnx", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", help="category folders")
    parser.add_argument("--methods", nargs="+", default=list(threecad.METHODS), help="all without")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of a fit")
    parser.add_argument("--runs", type=Path, help="folder to keep fits in")
    options = parser.parse_args()
    print(
        "| method | set | backend | parts, good + defective | verdicts that differ | largest difference of scores |"
        " of maps | rank correlation | nearest score to a threshold | model, MB |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for method in options.methods:
            for data in options.sets:
                run = (options.runs or Path(temporary)) / f"{method}-{data.name}"
                fit_unless_there(method, data, run, options.steps)
                for backend in BACKENDS:
                    print(row(run, data, backend, Path(temporary) / f"{run.name}-{backend}"), flush=True)


def fit_unless_there(method: str, data: Path, run: Path, steps: int) -> None:
    """A run of the quick preset with the embedded backbone, where the method has one, cut to so many steps."""
    if RunFolder(run).is_started:
        return
    fields = threecad.METHODS[method].Config.model_fields
    backbone = {"backbone": "embedded"} if "backbone" in fields else {}
    training = {"preset": "quick", "steps": steps}
    threecad.fit(method, data, run, settings={"method": backbone, "training": training})


def row(run: Path, data: Path, backend: str, folder: Path) -> str:
    """The line of one bundle."""
    record = RunFolder(run).read_record()
    first = f"| {record.method} | {data.name} | {backend} |"
    try:
        proof = export_run(run, folder, backend, data=data)  # type: ignore[arg-type]
    except ThreeCADError as error:
        return f"{first} {' '.join(str(error).split())} |"
    count = [sum(one.kind == kind for one in proof.images) for kind in ("good", "defective")]
    model = Bundle(folder).read_record().model
    size = sum(file.stat().st_size for file in folder.glob(f"{Path(model).stem}.*"))
    cells = [
        f"{count[0]} + {count[1]}",
        str(proof.verdict_flips),
        f"{proof.largest_score_difference:.1e}",
        f"{proof.largest_map_difference:.1e}",
        f"{proof.rank_correlation:.6f}",
        f"{proof.nearest_to_threshold:.1e}",
        f"{size / 1e6:.1f}",
    ]
    return f"{first} {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
