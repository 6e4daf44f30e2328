"""Maps and scores of many images: batches, precision, and nothing of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch

from threecad.allocation import keep_freed_memory
from threecad.detector import Detector
from threecad.errors import SettingsError
from threecad.images import resize_map
from threecad.records import Prediction
from threecad.training import to_tensor

BATCH = 8
"""Images that go through the network together."""


class Found(NamedTuple):
    """What a detector says of one image."""

    anomaly_map: np.ndarray  # (H, W) float32 at the detector's image size
    score: float


def predict(
    detector: Detector, images: Iterable[np.ndarray], precision: str = "auto", batch: int = BATCH
) -> Iterator[Found]:
    """Map and score of each image, in order.

    Args:
        images: pixels (H, W, 3) uint8 at the detector's image size.
        precision: `float32`, `bf16`, or `auto` for bf16 where the machine has it natively.
    """
    device = best_device()
    detector = prepare(detector, device)
    for pixels in _batches(images, batch):
        prediction = predict_batch(detector, pixels, precision, device)
        maps, scores = prediction.anomaly_map.float().cpu().numpy(), prediction.score.float().cpu().numpy()
        for anomaly_map, score in zip(maps[:, 0], scores, strict=True):
            yield Found(anomaly_map, float(score))


def prepare(detector: Detector, device: torch.device) -> Detector:
    """The detector as it predicts fastest on `device`: in eval mode, channels last."""
    keep_freed_memory()
    return detector.to(device).to(memory_format=torch.channels_last).eval()


def predict_batch(detector: Detector, pixels: np.ndarray, precision: str, device: torch.device) -> Prediction:
    """Prediction of pixels (B, H, W, 3) uint8, padded to a full batch by none: each image stands by itself."""
    with torch.inference_mode(), autocast(precision, device):
        return detector(to_tensor(pixels, device))


def at_size(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map (H, W) float32 resized bilinearly to `size`."""
    return anomaly_map if anomaly_map.shape == size else resize_map(anomaly_map, size)


def good_share(score: float, good_scores: Sequence[float] | np.ndarray) -> float:
    """Share of good parts that score at least as high: (k + 1) / (n + 1), one-sided.

    A part that looks like any other good one gets about 0.5; 0.01 means that one good part in a hundred looks as odd.
    """
    k = int(np.sum(np.asarray(good_scores) >= score))
    return (k + 1) / (len(good_scores) + 1)


def best_device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bf16`; `auto` takes bf16 where the device has it natively.

    Raises:
        SettingsError: bf16 was asked for and the device does not have it.
    """
    native = has_native_bf16(device)
    if precision == "bf16" and not native:
        raise SettingsError(
            f"setting 'training.precision': bf16 has no native support on this {device.type}; use float32"
        )
    return "bf16" if native and precision != "float32" else "float32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are done by the hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        tests = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(test is not None and test() for test in tests)
    return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A region in which the networks run in `precision`."""
    if resolve_precision(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    for image in images:
        pending.append(image)
        if len(pending) == size:
            yield np.stack(pending)
            pending = []
    if pending:
        yield np.stack(pending)
