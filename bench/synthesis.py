"""Times the synthesis of CFRG's anomalies against a NumPy version that works image by image.

    python bench/synthesis.py [--textures FOLDER] [--batch 32] [--size 256] [--threads 2] [--repeats 15]

Both sides follow the same recipe, end with float32 pixels, and hold their textures in memory as 8-bit pixels. Without
a folder both read the same random pictures: the time does not depend on what they show. Rounds alternate between the
two, and the table gives the median and the fastest.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from threecad.images import read_image
from threecad.synthesis.blending import TextureSynthesizer
from threecad.synthesis.textures import FolderTextures


def numpy_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Perlin noise (H, W) float32 the usual way: fades per axis, gradients of the four corners repeated over cells."""
    rows, columns = 2 ** rng.integers(0, 6, 2)
    y = np.arange(size, dtype=np.float32) * np.float32(rows / size) % 1
    x = np.arange(size, dtype=np.float32) * np.float32(columns / size) % 1
    y, fade_x = y[:, None], x**3 * (x * (6 * x - 15) + 10)
    fade_y = y**3 * (y * (6 * y - 15) + 10)
    angles = rng.uniform(0, 2 * np.pi, (rows + 1, columns + 1)).astype(np.float32)
    gradients_y, gradients_x = np.sin(angles), np.cos(angles)

    def corner(down: int, right: int) -> np.ndarray:
        cells = slice(down, rows + down), slice(right, columns + right)
        along_y, along_x = (
            gradients[cells].repeat(size // rows, 0).repeat(size // columns, 1)
            for gradients in (gradients_y, gradients_x)
        )
        along_y *= y - down
        along_x *= x - right
        along_y += along_x
        return along_y

    top, bottom = corner(0, 0), corner(1, 0)
    top += fade_x * (corner(0, 1) - top)
    bottom += fade_x * (corner(1, 1) - bottom)
    top += fade_y * (bottom - top)
    top *= np.float32(np.sqrt(2))
    return top


def numpy_synthesis(image: np.ndarray, textures: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Altered image (3, H, W) and mask (H, W), float32."""
    noise = Image.fromarray(numpy_noise(image.shape[-1], rng))
    noise = noise.rotate(rng.uniform(-90, 90), Image.Resampling.BILINEAR)
    mask = (np.asarray(noise) > 0.5).astype(np.float32)
    augmented = textures[rng.integers(len(textures))] * np.float32(1 / 255)
    augmented -= image
    augmented *= mask * np.float32(rng.uniform(0.2, 1))
    augmented += image
    return augmented, mask


def numpy_batch(images: np.ndarray, textures: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What a data loader makes of the images of a batch."""
    altered = [numpy_synthesis(image, textures, rng) for image in images]
    return np.stack([augmented for augmented, _ in altered]), np.stack([mask for _, mask in altered])


def interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after three rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(-3, repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, help="folder of pictures; random ones if not given")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=256, help="side in px, a multiple of 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, rng = (arguments.size, arguments.size), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)

    with tempfile.TemporaryDirectory() as drawn:
        folder = arguments.textures or Path(drawn)
        if arguments.textures is None:
            for index in range(64):
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.bmp")
        source = FolderTextures(folder)
        pictures = np.stack([read_image(path, size=size).transpose(2, 0, 1) for path in source.files])
        source.sample(1, size, generator)  # decodes them all

    images = torch.rand(arguments.batch, 3, *size, generator=generator)
    synthesizer = TextureSynthesizer(source)
    seconds = interleaved(
        {
            "NumPy, image by image": lambda: numpy_batch(images.numpy(), pictures, rng),
            "ThreeCAD, a batch at once": lambda: synthesizer(images, generator),
        },
        arguments.repeats,
    )
    reference = next(iter(seconds.values()))
    print(
        f"CFRG synthesis, batch {arguments.batch} at {size[0]}×{size[1]} px, {arguments.threads} threads, "
        f"{len(pictures)} textures, torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| version | median, ms an image | fastest, ms an image | times faster (median) |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        median, fastest = (1e3 / arguments.batch * value for value in (statistics.median(values), min(values)))
        ratio = statistics.median(reference) / statistics.median(values)
        print(f"| {name} | {median:.2f} | {fastest:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
