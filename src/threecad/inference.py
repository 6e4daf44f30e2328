"""A run's detector as torch runs it on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from threecad.checkpoint import load_detector
from threecad.detector import Detector
from threecad.devices import autocast, best_device, choose_device, has_native_bf16, resolve_precision
from threecad.predictor import BATCH, Found, GoodParts, Predictor, predict_all
from threecad.records import Prediction
from threecad.runs import RunFolder, RunRecord
from threecad.tensors import to_tensor


class TorchNetwork:
    """A detector in eval mode, channels last, on its device; what a `Predictor` calls."""

    def __init__(self, detector: Detector, precision: str = "auto", device: torch.device | None = None) -> None:
        self.device = device or best_device()
        self.precision = resolve_precision(precision, self.device)
        self.detector = detector.to(self.device).to(memory_format=torch.channels_last).eval()
        self.image_size = detector.config.image_size

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, H, W) and scores (B,), float32, of pixels (B, H, W, 3) uint8."""
        prediction = self.predict(pixels)
        maps, scores = prediction.anomaly_map.float().cpu().numpy(), prediction.score.float().cpu().numpy()
        return maps[:, 0], scores

    def predict(self, pixels: np.ndarray) -> Prediction:
        """The same, left on the device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.detector(to_tensor(pixels, self.device))


def load(
    run: Path | str,
    *,
    device: str | None = None,
    precision: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Predictor:
    """The predictor of a finished run.

    Args:
        device: `cpu`, `cuda`, …; the best of this machine without.
        precision: `float32`, `bf16` or `auto`; without, the one of the fit where this machine has it.
        notify: called with a line where this machine's arithmetic is another than the fit's.

    Raises:
        RunError: there is no finished run, or it does not fit this version.
        SettingsError: a device or a precision that this machine does not have.
    """
    detector, record = load_detector(RunFolder(Path(run)))
    return predictor_of(detector, record, device=device, precision=precision, notify=notify)


def predictor_of(
    detector: Detector,
    record: RunRecord,
    *,
    device: str | None = None,
    precision: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Predictor:
    """The predictor of a detector and the record of its fit; arguments as of `load`."""
    chosen = choose_device(device)
    if precision is None:
        precision = record.precision if record.precision == "float32" or has_native_bf16(chosen) else "float32"
    network = TorchNetwork(detector, precision, chosen)
    if network.precision != record.precision:
        notify(
            f"the run was fitted in {record.precision}, this machine predicts in {network.precision}: "
            "scores differ a little from those of the good parts kept aside"
        )
    good = {
        name: GoodParts(record.good_scores.get(name, []), record.good_peaks.get(name, [])) for name in record.categories
    }
    return Predictor(network, record.method, good, identity=record.detector_sha256)


def predict(
    detector: Detector, images: Iterable[np.ndarray], precision: str = "auto", batch: int = BATCH
) -> Iterator[Found]:
    """Map and score of each image, in order.

    Args:
        images: pixels (H, W, 3) uint8 at the detector's image size.
        precision: `float32`, `bf16`, or `auto` for bf16 where the machine has it natively.
    """
    return predict_all(TorchNetwork(detector, precision), images, batch)
