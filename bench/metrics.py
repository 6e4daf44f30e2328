"""Times the pixel metrics against scikit-learn and the paper's P-PRO loop, and measures their memory on large sets.

    python bench/metrics.py [--maps 500] [--size 256] [--threads 2] [--memory-maps 4936]

Time: smooth noise maps, every second one with one to three blobs of defect; both sides run once, in this process, on
the same arrays. The reference is `roc_auc_score` and `average_precision_score` on all pixels joined, and a loop over
200 thresholds for every image with a defect, whose regions are found once an image.

Memory: maps (float32) and masks (uint8) in files that a fresh process scores through `numpy.memmap`; the growth of its
peak resident memory counts mapped pages too. `--memory-maps 0` leaves this part out.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import ndimage

from threecad.metrics import pixel_scores
from threecad.regions import label_regions

MEMORY_DEFECT_SHARE = 0.02

Result = TypeVar("Result")


def draw_set(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, S, S) float32 of smooth noise, raised softly over the blobs of their masks (N, S, S) bool."""
    maps, masks = np.empty((count, size, size), np.float32), np.zeros((count, size, size), bool)
    rows, columns = np.mgrid[:size, :size]
    for index in range(count):
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size), np.float32), size / 64)
        for _ in range(rng.integers(1, 4) if index % 2 else 0):
            row, column = rng.integers(size // 8, size - size // 8, 2)
            height, width = rng.uniform(size / 64, size / 12, 2)
            masks[index] |= ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1
        glow = ndimage.gaussian_filter(masks[index].astype(np.float32), size / 64)
        maps[index] = noise / noise.std() + 3 * glow
    return maps, masks


def loop_pro_per_image(maps: np.ndarray, masks: np.ndarray) -> float:
    """The paper's P-PRO, threshold by threshold."""
    from sklearn.metrics import auc

    areas = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if not mask.any():
            continue
        labels, count = label_regions(mask)
        regions = [np.nonzero(labels == label) for label in range(1, count + 1)]
        normal, n_normal = ~mask, np.count_nonzero(~mask)
        low, high = np.float64(anomaly_map.min()), np.float64(anomaly_map.max())
        rates, overlaps = [], []
        for k in range(200):
            positive = anomaly_map > low + k * (high - low) / 200
            overlaps.append(np.mean([positive[region].mean() for region in regions]))
            rates.append(np.count_nonzero(positive & normal) / n_normal)
        fpr, overlap = np.array(rates), np.array(overlaps)
        kept = fpr < 0.3
        areas.append(auc(fpr[kept] / fpr[kept].max(), overlap[kept]))
    return float(np.mean(areas))


def sorted_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Pooled P-PRO from a full sort of all pixels; an oracle for the value, not part of the timed reference."""
    weights = np.zeros(maps.shape)
    n_regions = 0
    for index, mask in enumerate(masks):
        labels, count = label_regions(mask)
        n_regions += count
        weights[index][mask] = (1 / np.bincount(labels[mask])[1:])[labels[mask] - 1] if count else ()
    order = np.argsort(maps, axis=None)[::-1]
    values = maps.ravel()[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    fpr = np.append(0, np.cumsum(~masks.ravel()[order])[last] / np.count_nonzero(~masks))
    overlap = np.append(0, np.cumsum(weights.ravel()[order])[last] / n_regions)
    end = np.interp(0.3, fpr, overlap)
    inside = fpr < 0.3
    return float(np.trapezoid(np.append(overlap[inside], end), np.append(fpr[inside], 0.3)) / 0.3)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def measure_time(count: int, size: int, threads: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    maps, masks = draw_set(count, size, np.random.default_rng(0))
    pixel_scores(maps[:4], masks[:4])  # loads SciPy; the reference's libraries are loaded too
    loop_pro_per_image(maps[:2], masks[:2])

    ours, ours_s = timed(lambda: pixel_scores(maps, masks, threads=threads))
    labels, values = masks.ravel(), maps.ravel()
    auroc, auroc_s = timed(lambda: roc_auc_score(labels, values))
    ap, ap_s = timed(lambda: average_precision_score(labels, values))
    pro_per_image, loop_s = timed(lambda: loop_pro_per_image(maps, masks))
    reference_s = auroc_s + ap_s + loop_s
    pro = sorted_pro(maps, masks)

    print(
        f"{count} maps of {size}×{size}, {100 * masks.mean():.2f} % defect pixels in {ours.n_regions} regions, "
        f"{threads} threads, NumPy {np.__version__}, {platform.machine()}\n"
    )
    print("| metric | threecad | reference | difference | reference s |")
    print("|---|---|---|---|---|")
    for name, value, expected, duration in [
        ("p_auroc", ours.p_auroc, auroc, f"{auroc_s:.2f}"),
        ("p_ap", ours.p_ap, ap, f"{ap_s:.2f}"),
        ("p_pro_per_image", ours.p_pro_per_image, pro_per_image, f"{loop_s:.2f}"),
        ("p_pro", ours.p_pro, pro, "not counted"),
    ]:
        print(f"| {name} | {value:.9f} | {expected:.9f} | {abs(value - expected):.1e} | {duration} |")
    print(f"\nAll of it: {ours_s:.2f} s against {reference_s:.2f} s, {reference_s / ours_s:.0f} times as fast.\n")


def write_set(folder: Path, count: int, size: int) -> None:
    """maps.bin and masks.bin of random maps, each with the same share of defect pixels."""
    rng = np.random.default_rng(0)
    side = round((MEMORY_DEFECT_SHARE * size * size) ** 0.5)
    with (folder / "maps.bin").open("wb") as maps, (folder / "masks.bin").open("wb") as masks:
        for _ in range(count):
            row, column = rng.integers(0, size - side, 2)
            mask = np.zeros((size, size), np.uint8)
            mask[row : row + side, column : column + side] = 255
            maps.write((rng.standard_normal((size, size), np.float32) + (mask > 0)).tobytes())  # hardly a tie
            masks.write(mask.tobytes())


def peak_mb() -> float:
    """Peak resident memory of this process in MB (10⁶ bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def score_files(folder: Path, count: int, size: int, threads: int) -> None:
    shape = (count, size, size)
    maps = np.memmap(folder / "maps.bin", np.float32, "r", shape=shape)
    masks = np.memmap(folder / "masks.bin", np.uint8, "r", shape=shape)
    before, start = peak_mb(), time.perf_counter()
    scores = pixel_scores(maps, masks, threads=threads)
    duration, growth = time.perf_counter() - start, peak_mb() - before
    print("| maps on disk | MB of maps and masks | defect pixels | seconds | memory grew by MB | p_auroc |")
    print("|---|---|---|---|---|---|")
    share = f"{100 * round((MEMORY_DEFECT_SHARE * size * size) ** 0.5) ** 2 / size**2:.1f} %"
    written = (maps.nbytes + masks.nbytes) / 1e6
    print(f"| {count} | {written:.0f} | {share} | {duration:.1f} | {growth:.0f} | {scores.p_auroc:.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=500, help="maps that are timed")
    parser.add_argument("--size", type=int, default=256, help="height and width of a map in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-maps", type=int, default=4936, help="maps on disk; 0 measures time only")
    parser.add_argument("--score-files", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score_files:
        score_files(arguments.score_files, arguments.memory_maps, arguments.size, arguments.threads)
        return
    measure_time(arguments.maps, arguments.size, arguments.threads)
    if arguments.memory_maps:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), arguments.memory_maps, arguments.size)
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--score-files", folder], check=True)


if __name__ == "__main__":
    main()
