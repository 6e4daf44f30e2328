"""Times a run and its bundles: the network at batch 1, from a camera's file to the verdict, and the first verdict.

    python bench/runtime.py RUN BUNDLE... [--rounds 30] [--starts 5] [--side 1024]

All networks look in turn, so that a machine's other work disturbs them alike; the table gives medians and what the
fastest look took. The reference is the run in PyTorch, eager, in float32.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import threecad
from threecad.devices import hardware, has_native_bf16
from threecad.predictor import Predictor
from threecad.runtime.bundle import Bundle

FIRST = """
import sys, threecad.runtime
print(threecad.runtime.load(sys.argv[1])(sys.argv[2]).verdict)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--side", type=int, default=1024, help="of the camera's picture, in pixels")
    options = parser.parse_args()
    reference = threecad.load(options.run, precision="float32")
    exported = [threecad.load(bundle) for bundle in options.bundles]
    predictors = {"PyTorch eager, float32": reference}
    if has_native_bf16(torch.device("cpu")):
        predictors["PyTorch eager, bf16"] = threecad.load(options.run, precision="bf16")
    predictors |= {f"{one.network.engine}, {one.precision}": one for one in exported}  # type: ignore[attr-defined]
    height, width = reference.image_size
    print(
        f"{reference.method} at {height}×{width}, batch 1, {hardware()}, {torch.get_num_threads()} threads in PyTorch\n"
    )
    networks(predictors, options.rounds)
    camera = jpeg(options.side)
    for one, bundle in zip(exported, options.bundles, strict=True):
        to_verdict(
            one, camera, options.rounds, f"{Bundle(bundle).read_record().backend}, {options.side}×{options.side}"
        )
    for bundle in options.bundles:
        starts(bundle, camera, options.starts)


def networks(predictors: dict[str, Predictor], rounds: int) -> None:
    """Print how long each network looks at one picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, *next(iter(predictors.values())).image_size, 3), np.uint8)
    taken = in_turn([lambda one=one: one.network(pixels) for one in predictors.values()], rounds)  # type: ignore[misc]
    median, fastest = np.median(taken, axis=1), taken.min(axis=1)
    print("| network | median, ms | fastest, ms | times faster (median) | times faster (fastest) |")
    print("|---|---:|---:|---:|---:|")
    for name, middle, least in zip(predictors, median, fastest, strict=True):
        print(f"| {name} | {middle:.0f} | {least:.0f} | {median[0] / middle:.2f} | {fastest[0] / least:.2f} |")
    print(flush=True)


def to_verdict(predictor: Predictor, camera: bytes, rounds: int, what: str) -> None:
    """Print how much longer it takes from the bytes of a picture to verdict and regions than the network alone."""
    pixels = np.zeros((1, *predictor.image_size, 3), np.uint8)

    def inspect() -> object:
        return predictor(Image.open(io.BytesIO(camera)))

    alone, whole = in_turn([lambda: predictor.network(pixels), inspect], rounds)
    print("| camera to verdict | 50th percentile, ms | 99th, ms | times the network alone (median) | (fastest) |")
    print("|---|---:|---:|---:|---:|")
    ratios = f"{np.median(whole) / np.median(alone):.2f} | {whole.min() / alone.min():.2f}"
    print(f"| {what} | {np.median(whole):.0f} | {np.percentile(whole, 99):.0f} | {ratios} |\n", flush=True)


def starts(bundle: Path, camera: bytes, count: int) -> None:
    """Print how long a new process takes to its first verdict, and how much of it processors work for it."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(camera)
        command = [sys.executable, "-c", FIRST, str(bundle), str(picture)]
        before = children_s()
        (taken,) = in_turn([lambda: subprocess.run(command, check=True, capture_output=True)], count) / 1000
        worked = (children_s() - before) / (count + 1)
    print("| first verdict after the start of the process | median, s | fastest, s | processor time, mean, s |")
    print("|---|---:|---:|---:|")
    print(f"| {bundle.name} | {np.median(taken):.2f} | {taken.min():.2f} | {worked:.2f} |\n", flush=True)


def children_s() -> float:
    """Processor time of all processes that this one has started and that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turn(works: list[Callable[[], object]], rounds: int) -> np.ndarray:
    """(works, rounds) milliseconds, after one round that does not count."""
    taken = np.empty((len(works), rounds + 1))
    for round_ in range(rounds + 1):
        for index, work in enumerate(works):
            start = time.perf_counter()
            work()
            taken[index, round_] = 1000 * (time.perf_counter() - start)
    return taken[:, 1:]


def jpeg(side: int) -> bytes:
    """The bytes of a photograph-like picture: smooth shades with grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(60, 200, (16, 16, 3), np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 4, (side, side, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


if __name__ == "__main__":
    main()
