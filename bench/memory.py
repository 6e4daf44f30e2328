"""Prints the peak memory of `threecad predict` of one large picture beside that of a small one, in megabytes.

python bench/memory.py [--megapixels 20]

PaDiM learns drawn parts as a whole, and in 3 × 4 tiles and as a whole; pictures are drawn, too. Each number is of a
process of its own, as Linux counts it (VmHWM).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from threecad.demo.parts import render_part, write_parts
from threecad.fitting import fit

WAYS: dict[str, dict[str, object]] = {"the whole": {}, "3 × 4 tiles and the whole": {"tiles": [3, 4]}}
OUTPUTS = {"verdict alone": ["--no-maps", "--no-overlays"], "map": ["--no-overlays"], "map and overlay": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=20.0)
    megapixels = parser.parse_args().megapixels
    header = ("network sees", "written", "a small picture, MB", f"{megapixels:g} megapixels, MB", "more, MB")
    print(f"| {' | '.join(header)} | times its pixels |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_parts(folder / "data", train=16, good=1, defects=1)
        small, large = drawn(folder / "small.png", 0.065), drawn(folder / "large.png", megapixels)
        for number, (way, data) in enumerate(WAYS.items()):
            run = folder / f"run-{number}"
            settings = {"training": {"preset": "quick"}, "method": {"backbone": "embedded"}, "data": data}
            fit("padim", folder / "data", run, settings=settings)
            for output, options in OUTPUTS.items():
                base, peak = (peak_mb(run, picture, folder / "out", options) for picture in (small, large))
                share = (peak - base) / (3 * megapixels)
                print(f"| {way} | {output} | {base:.0f} | {peak:.0f} | {peak - base:.0f} | {share:.1f} |", flush=True)


def drawn(file: Path, megapixels: float) -> Path:
    """A picture of a good part, larger than it was drawn, with the noise of a camera."""
    side = round(1000 * math.sqrt(megapixels))
    pixels = np.array(Image.fromarray(render_part(1, "test", "good", 0).image).resize((side, side)))
    noise = np.random.default_rng(0).integers(-4, 5, pixels.shape, np.int16)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file, compress_level=1)
    return file


CHILD = """
import re, sys
from threecad.cli import main
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
"""A command, and then its largest resident size. The system's count of a child begins with its parent's."""


def peak_mb(run: Path, picture: Path, out: Path, options: list[str]) -> float:
    """Largest resident size of a process that predicts one picture."""
    command = [sys.executable, "-c", CHILD, "predict", str(run), str(picture), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1]) / 1e3


if __name__ == "__main__":
    main()
