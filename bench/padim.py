"""Times PaDiM's scoring against anomalib's torch model, and measures what a fit of many images takes in memory.

    python bench/padim.py [--batch 16] [--size 256] [--threads 2] [--rounds 9] [--fit-images 2000] [--data CATEGORY]

Time: ResNet-18 at random, the same weights, channels and Gaussians on both sides, backbone included; rounds alternate,
and the table gives the median and the fastest. Without anomalib its model is restated here, operation by operation;
the table says which it was.

Memory: a fresh process fits that many noise images, and reports the growth of its peak resident memory since the
detector was built. `--fit-images 0` leaves this part out.

Precision: with `--data`, PaDiM on the embedded backbone learns that category folder and scores its test images in
float32 and in bf16; the table gives both image AUROCs.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.methods.padim import PaDiM
from threecad.nets.gaussians import whitening
from threecad.records import Batch

LAYERS = ["layer1", "layer2", "layer3"]
FEATURES = 100


class Restated(nn.Module):
    """anomalib 2.7's `PadimModel.forward`, for where anomalib is not installed."""

    def __init__(self, detector: PaDiM, mean: Tensor, precision: Tensor, channels: Tensor) -> None:
        super().__init__()
        self.network, self.mean, self.precision, self.channels = detector.pyramid.network, mean, precision, channels
        offset = torch.arange(-16, 17).float()
        kernel = torch.exp(-0.5 * (offset / 4) ** 2)
        self.kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.network(image)
        embedding = features[0]
        for scale in features[1:]:
            embedding = torch.cat([embedding, F.interpolate(scale, size=embedding.shape[-2:], mode="nearest")], 1)
        embedding = torch.index_select(embedding, 1, self.channels)
        batch, channels, height, width = embedding.shape
        delta = (embedding.reshape(batch, channels, height * width) - self.mean).permute(2, 0, 1)
        distance = (torch.matmul(delta, self.precision) * delta).sum(2).permute(1, 0)
        distance = distance.reshape(batch, 1, height, width).clamp(0).sqrt()
        anomaly_map = F.interpolate(distance, size=image.shape[-2:], mode="bilinear", align_corners=False)
        padded = F.pad(anomaly_map, (16, 16, 16, 16), mode="reflect")
        return F.conv2d(F.conv2d(padded, self.kernel), self.kernel.transpose(2, 3))


class Pair(NamedTuple):
    """Both models with equal weights, as functions of normalised or plain images, and the reference's name."""

    ours: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    name: str


def build_pair(size: int) -> Pair:
    torch.manual_seed(0)
    detector = PaDiM(PaDiM.Config(weights="random", image_size=(size, size), features=FEATURES)).eval()
    positions = len(detector.gaussians.mean)
    samples = 0.3 * torch.randn(positions, 2 * FEATURES, FEATURES)
    sigma = (samples.transpose(1, 2) @ samples / len(samples[0])).double() + 0.01 * torch.eye(FEATURES)
    mean, precision = 0.1 * torch.randn(FEATURES, positions), torch.linalg.inv(sigma).float()
    detector.gaussians.mean.copy_(mean.T)
    detector.gaussians.factor.copy_(whitening(sigma))
    try:
        from anomalib.models.image.padim.torch_model import PadimModel
    except ImportError:
        reference: nn.Module = Restated(detector, mean, precision, detector.channels.clone()).eval()
        name = "anomalib's operations, restated"
    else:
        reference = PadimModel("resnet18", LAYERS, pre_trained=False, n_features=FEATURES).eval()
        reference.feature_extractor.feature_extractor.load_state_dict(detector.pyramid.network.state_dict())
        reference.idx, reference.gaussian.mean, reference.gaussian.inv_covariance = detector.channels, mean, precision
        name = "anomalib's PadimModel"
    if isinstance(reference, Restated):  # its network must not follow ours into the channels-last layout
        import copy

        reference.network = copy.deepcopy(reference.network)
    detector = detector.to(memory_format=torch.channels_last)  # as `threecad.inference` does

    def score(image: Tensor) -> Tensor:
        return detector(image.contiguous(memory_format=torch.channels_last)).anomaly_map

    def reference_score(image: Tensor) -> Tensor:
        found = reference((image - detector.pyramid.mean) / detector.pyramid.std)
        return found if isinstance(found, Tensor) else found.anomaly_map

    return Pair(score, reference_score, name)


def time_scoring(options: argparse.Namespace) -> None:
    pair = build_pair(options.size)
    image = torch.rand(options.batch, 3, options.size, options.size)

    def bf16(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(image: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return function(image)

        return run

    contenders = {
        (pair.name, "float32"): pair.reference,
        ("ThreeCAD", "float32"): pair.ours,
        ("ThreeCAD", "bf16"): bf16(pair.ours),
    }
    times: dict[tuple[str, str], list[float]] = {contender: [] for contender in contenders}
    with torch.inference_mode():
        inner = (..., slice(16, -16), slice(16, -16))  # the filters mirror the border differently
        apart = (pair.ours(image)[inner] - pair.reference(image)[inner]).abs().max().item()
        for round_ in range(options.rounds + 1):
            for contender, function in contenders.items():
                start = time.perf_counter()
                function(image)
                if round_:  # the first one warms up
                    times[contender].append(time.perf_counter() - start)
    base_median, base_fastest = statistics.median(times[pair.name, "float32"]), min(times[pair.name, "float32"])
    print(f"\nScoring {options.batch} images of {options.size}×{options.size}; maps differ by at most {apart:.1e}\n")
    print("| model | precision | median ms | fastest ms | speed-up (median) | speed-up (fastest) |")
    print("|---|---|---:|---:|---:|---:|")
    for (name, precision), seconds in times.items():
        median, fastest = statistics.median(seconds), min(seconds)
        ratios = f"{base_median / median:.2f} | {base_fastest / fastest:.2f}"
        print(f"| {name} | {precision} | {1e3 * median:.0f} | {1e3 * fastest:.0f} | {ratios} |")


def fit_noise(options: argparse.Namespace) -> None:
    """In a process of its own: fit on noise, print the growth of the peak in MB and the seconds."""
    detector = PaDiM(PaDiM.Config(weights="random", image_size=(options.size, options.size))).eval()
    before, start = peak_mb(), time.perf_counter()
    (phase,) = detector.phases(textures=None)  # type: ignore[arg-type]
    sums = phase.empty_sums()  # type: ignore[union-attr]
    with torch.no_grad():
        for first in range(0, options.fit_images, PaDiM.batch):
            image = torch.rand(min(PaDiM.batch, options.fit_images - first), 3, options.size, options.size)
            phase.observe(sums, Batch(image, image, image[:, :1]))  # type: ignore[union-attr]
        phase.conclude(sums)  # type: ignore[union-attr]
    print(peak_mb() - before, time.perf_counter() - start)


def peak_mb() -> float:
    """Peak of this process; Linux's `ru_maxrss` would begin at the peak of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(options: argparse.Namespace) -> None:
    counts = (options.fit_images // 8, options.fit_images)
    print("\nFit at the paper's batch of 32, beyond the detector itself\n")
    print("| images | growth of the peak, MB | seconds |\n|---:|---:|---:|")
    for count in counts:
        command = [sys.executable, __file__, "--fit-noise", "--fit-images", str(count), "--size", str(options.size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        growth, seconds = done.stdout.split()
        print(f"| {count} | {float(growth):.0f} | {float(seconds):.0f} |")


def compare_precisions(folder: Path) -> None:
    from threecad.data.loading import load_images
    from threecad.data.readers import read_category
    from threecad.inference import predict
    from threecad.metrics import image_scores
    from threecad.tensors import to_tensor

    torch.manual_seed(0)
    detector = PaDiM(PaDiM.Config(backbone="embedded")).eval()
    category = read_category(folder.parent, folder.name)
    size = detector.config.image_size
    good, test = load_images(category.train, size), load_images(category.test, size)
    labels = [sample.is_defect for sample in category.test]
    (phase,) = detector.phases(textures=None)  # type: ignore[arg-type]
    sums = phase.empty_sums()  # type: ignore[union-attr]
    with torch.no_grad():
        for first in range(0, len(good), PaDiM.batch):
            image = to_tensor(good[first : first + PaDiM.batch], "cpu")
            phase.observe(sums, Batch(image, image, image[:, :1]))  # type: ignore[union-attr]
        phase.conclude(sums)  # type: ignore[union-attr]
    print(f"\n{folder.name}, embedded backbone\n\n| precision | I-AUROC |\n|---|---:|")
    for precision in ("float32", "bf16"):
        scores = [found.score for found in predict(detector, test, precision)]
        print(f"| {precision} | {image_scores(scores, labels).i_auroc:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fit-images", type=int, default=2000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fit-noise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.fit_noise:
        return fit_noise(options)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    time_scoring(options)
    if options.fit_images:
        measure_memory(options)
    if options.data:
        compare_precisions(options.data)


if __name__ == "__main__":
    main()
