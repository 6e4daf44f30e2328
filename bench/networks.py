"""Times CFRG's training step and its inference against the same model eager, in float32, contiguous.

    python bench/networks.py [--batch 8] [--size 256] [--threads 2] [--rounds 5]

Both sides start from the same random weights and see the same images; rounds alternate, the table gives medians. The
fast side is what `fit` and `predict` do on this machine: channels last, networks in bf16 where the processor has it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from threecad.devices import autocast, resolve_precision
from threecad.inference import TorchNetwork
from threecad.methods.cfrg import CFRG
from threecad.presets import build
from threecad.records import Batch
from threecad.tensors import to_tensor

PAPER: dict[str, object] = {"weights": "random"}
EMBEDDED: dict[str, object] = {
    "backbone": "tf_efficientnet_lite0.in1k",
    "weights": "random",
    **CFRG.quick.method,
}
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precision = resolve_precision("auto", CPU)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    print(
        f"CFRG, batch {arguments.batch} at {shape[1]}×{shape[2]}, {arguments.threads} threads, shipped: {precision}\n"
    )
    print("| what | backbone | float32 eager, s | as shipped, s | times faster |")
    print("|---|---|---|---|---|")
    for name, settings in (("embedded, quick", EMBEDDED), ("paper", PAPER)):
        for what, work in (("training step", training), ("inference", inference)):
            slow, fast = work(settings, pixels)
            ours, theirs = interleaved(fast, slow, arguments.rounds)
            print(f"| {what} | {name} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |", flush=True)


def training(settings: dict[str, object], pixels: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """A whole step without synthesis: losses, backwards, AdamW."""

    def step(fast: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        detector = build("cfrg", **settings).train()
        image = to_tensor(pixels, CPU)
        if fast:
            detector = detector.to(memory_format=torch.channels_last)
        else:
            image = image.contiguous()
        mask = torch.zeros(len(image), 1, *image.shape[-2:])
        mask[:, :, 64:128, 64:128] = 1
        optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=5e-4)

        def run() -> None:
            with autocast("auto" if fast else "float32", CPU):
                terms: dict[str, Tensor] = detector.losses(Batch(image, image, mask))  # type: ignore[operator]
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    return step(fast=False), step(fast=True)


def inference(settings: dict[str, object], pixels: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """Map and score of a batch of pixels."""
    torch.manual_seed(0)
    slow = build("cfrg", **settings).eval()
    torch.manual_seed(0)
    fast = TorchNetwork(build("cfrg", **settings), "auto", CPU)

    def eager() -> object:
        with torch.inference_mode():
            return slow(to_tensor(pixels, CPU).contiguous())

    return eager, lambda: fast.predict(pixels)


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, in alternating rounds after one that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for side, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            work()
            if round_:
                seconds[side].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
