"""Fits every method on every set, exports each fit for both backends, and prints what the proofs say.

python bench/export.py ROOT/SET... [--methods padim cfrg] [--steps 8] [--parts 30] [--runs DIR]

A fit is of the quick preset with the embedded backbone, where the method has one, in float32, cut to so many steps of
two images on so many good parts: an export does not care how good a detector is. With `--runs`, fits and rows are kept
in DIR, and those that are there are taken as they are: an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import threecad
from threecad.errors import ThreeCADError
from threecad.export.bundling import export_run
from threecad.files import write_text
from threecad.runs import RunFolder
from threecad.runtime.bundle import Bundle, BundleRecord

BACKENDS = ("onnx", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", help="category folders")
    parser.add_argument("--methods", nargs="+", default=list(threecad.METHODS), help="all without")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of a fit")
    parser.add_argument("--parts", type=int, default=30, help="good parts, and defective ones, that are taken of a set")
    parser.add_argument("--runs", type=Path, help="folder to keep fits and rows in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = options.runs or Path(temporary)
        for data in options.sets:
            some = some_parts(data, kept / "sets" / data.name, options.parts)
            for method in options.methods:
                run = kept / f"{method}-{data.name}"
                fit_unless_there(method, some, run, options.steps)
                for backend in BACKENDS:
                    row(run, some, backend, kept / f"{run.name}-{backend}.json")
        print(
            "| method | set | backend | parts, good + defective | verdicts that differ | largest difference of scores |"
            " of maps | rank correlation | nearest score to a threshold | model, MB |"
        )
        print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
        for method in options.methods:
            for data in options.sets:
                for backend in BACKENDS:
                    run = kept / f"{method}-{data.name}"
                    print(row(run, data, backend, kept / f"{run.name}-{backend}.json"))


def some_parts(data: Path, folder: Path, most: int) -> Path:
    """`folder` as a set of links to at most so many good parts to learn from, and defective ones, taken evenly."""
    learnt = [file for file in sorted((data / "train" / "good").iterdir()) if file.is_file()]
    defective = [file for file in sorted((data / "test").glob("*/*")) if file.parent.name != "good"]
    for file in (*evenly(learnt, most), *evenly(defective, most)):
        link = folder / file.relative_to(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())
    return folder


def evenly(files: list[Path], most: int) -> list[Path]:
    """At most so many of them."""
    return [files[index] for index in np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)]


def fit_unless_there(method: str, data: Path, run: Path, steps: int) -> None:
    """A run that is as the head of this file says."""
    if RunFolder(run).is_started and RunFolder(run).read_record().finished:
        return
    fields = threecad.METHODS[method].Config.model_fields
    backbone = {"backbone": "embedded"} if "backbone" in fields else {}
    training = {"preset": "quick", "steps": steps, "batch": 2, "precision": "float32"}
    settings = {"method": backbone, "training": training}
    threecad.fit(method, data, run, settings=settings, resume=RunFolder(run).is_started)


def row(run: Path, data: Path, backend: str, kept: Path) -> str:
    """The line of one bundle, which stays in the file `kept`."""
    if not kept.exists():
        with tempfile.TemporaryDirectory() as temporary:
            write_text(kept, json.dumps(figures(run, data, backend, Path(temporary) / "bundle")))
    cells = [RunFolder(run).read_record().method, data.name, backend, *json.loads(kept.read_text())]
    return f"| {' | '.join(cells)} |"


def figures(run: Path, data: Path, backend: str, folder: Path) -> list[str]:
    """What the proof of one bundle says, and how large its model is; or why there is none."""
    try:
        proof = export_run(run, folder, backend, data=data)  # type: ignore[arg-type]
    except ThreeCADError as error:
        return [" ".join(str(error).split())]
    count = [sum(one.kind == kind for one in proof.images) for kind in ("good", "defective")]
    model = Path(BundleRecord.model_validate_json(Bundle(folder).record_file.read_bytes()).model)
    size = sum(file.stat().st_size for file in folder.glob(f"{model.stem}.*"))
    return [
        f"{count[0]} + {count[1]}",
        str(proof.verdict_flips),
        f"{proof.largest_score_difference:.1e}",
        f"{proof.largest_map_difference:.1e}",
        "-" if proof.rank_correlation is None else f"{proof.rank_correlation:.6f}",
        "-" if proof.nearest_to_threshold is None else f"{proof.nearest_to_threshold:.1e}",
        f"{size / 1e6:.1f}",
    ]


if __name__ == "__main__":
    main()
