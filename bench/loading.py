"""Times the data of a second epoch: rows of the decoded pack against decoding 1024×1024 PNGs again.

    python bench/loading.py [--images 64] [--size 256] [--rounds 5]

The pictures look like photographs (smooth shading, grain), so that PNG decoding costs what it costs on parts. Both
sides end with float32 batches of 8, (8, 3, H, W) in [0, 1]; decoding uses two threads. Rounds alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["THREECAD_CACHE"] = str(Path(folder) / "cache")
        from threecad.data.loading import Rows, load_images
        from threecad.data.readers import read_category
        from threecad.images import read_image
        from threecad.tensors import to_tensor

        draw_pictures(Path(folder) / "parts", arguments.images)
        samples = read_category(Path(folder) / "parts").train
        start = time.perf_counter()
        rows = Rows(load_images(samples, size), np.arange(len(samples)))
        first = time.perf_counter() - start
        order = np.random.default_rng(0).permutation(len(samples)).reshape(-1, 8)

        def again() -> None:
            for chosen in order:
                to_tensor(rows[np.sort(chosen)], "cpu")

        def decoding() -> None:
            with ThreadPoolExecutor(2) as threads:
                for chosen in order:
                    read = threads.map(lambda index: read_image(samples[index].image, size), chosen)
                    to_tensor(np.stack(list(read)), "cpu")

        seconds: dict[str, list[float]] = {"decoding each time": [], "rows of the pack": []}
        for _ in range(arguments.rounds):
            for name, work in (("decoding each time", decoding), ("rows of the pack", again)):
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)

    print(f"Data of an epoch after the first, {len(samples)} PNGs of 1024×1024 px to {size[0]}×{size[1]}\n")
    print("| version | median, ms an image | times faster |")
    print("|---|---|---|")
    reference = statistics.median(seconds["decoding each time"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {1e3 * median / len(samples):.3f} | {reference / median:.0f} |")
    print(f"\nThe first epoch decodes and packs in {1e3 * first / len(samples):.1f} ms an image.")


def draw_pictures(folder: Path, count: int) -> None:
    """PNGs of 1024×1024 px with shading and grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1024, 0:1024] / 1024
    for index in range(count):
        shading = 120 + 60 * np.sin(3 * x + index) * np.cos(2 * y)
        pixels = shading[..., None] + rng.normal(0, 6, (1024, 1024, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.png", compress_level=1)


if __name__ == "__main__":
    main()
