"""A run's detector as torch runs it on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from threecad import devices
from threecad.checkpoint import load_detector
from threecad.detector import Detector
from threecad.devices import autocast, best_device, choose_device, resolve_precision
from threecad.errors import DataError, RunError
from threecad.framing import Framing, MapUnits, Region, Tiles
from threecad.images import decoding_of
from threecad.predictor import BATCH, Found, Predictor, predict_all
from threecad.records import Prediction
from threecad.registration import GoldenPart
from threecad.runs import RunFolder, RunRecord
from threecad.tensors import to_tensor
from threecad.verdicts import Conditions, GoodScores, Verdicts, other_conditions


class TorchNetwork:
    """A detector in eval mode, channels last, on its device; what a `Predictor` calls."""

    def __init__(self, detector: Detector, precision: str = "auto", device: torch.device | None = None) -> None:
        self.device = device or best_device()
        self.precision = resolve_precision(precision, self.device)
        self.detector = detector.to(self.device).to(memory_format=torch.channels_last).eval()
        self.image_size = detector.config.image_size
        self.forward: Callable[[torch.Tensor], Prediction] = self.detector

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, H, W) and scores (B,), float32, of pixels (B, H, W, 3) uint8."""
        prediction = self.predict(pixels)
        maps, scores = prediction.anomaly_map.float().cpu().numpy(), prediction.score.float().cpu().numpy()
        return maps[:, 0], scores

    def predict(self, pixels: np.ndarray) -> Prediction:
        """The same, left on the device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.forward(to_tensor(pixels, self.device))


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
    folder = RunFolder(Path(run))
    detector, record = load_detector(folder)
    framing, verdicts = recorded_framing(folder, record), folder.read_verdicts()
    return predictor_of(detector, record, framing, verdicts, device=device, precision=precision, notify=notify)


def predictor_of(
    detector: Detector,
    record: RunRecord,
    framing: Framing,
    verdicts: Verdicts | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Predictor:
    """The predictor of a detector, the record of its fit, what it sees of a picture, and its verdicts.

    Other arguments are as of `load`.
    """
    chosen = choose_device(device)
    if precision is None:
        precision = record.precision if record.precision == "float32" or devices.has_native_bf16(chosen) else "float32"
    network = TorchNetwork(detector, precision, chosen)
    if network.precision != record.precision:
        notify(
            f"the run was fitted in {record.precision}, this machine predicts in {network.precision}: "
            "scores differ a little, and good parts have to be scored here: threecad calibrate RUN FOLDER --anew"
        )
    here = record.conditions(network.image_size, network.precision)
    units = {kind: MapUnits(*values) for kind, values in record.map_units.items()}
    trusted = _trusted(verdicts or Verdicts(GoodScores()), here)
    return Predictor(network, record.method, trusted, here, framing, units, decoding_of(record.settings["data"]))


def _trusted(verdicts: Verdicts, here: Conditions) -> Verdicts:
    """The verdicts, which distrust good parts that were scored under other conditions than hold here."""
    differ = other_conditions(verdicts.good.conditions, here) if verdicts.good.categories else ""
    return replace(verdicts, distrust=f"good parts were scored otherwise: {differ}" if differ else "")


def recorded_framing(folder: RunFolder, record: RunRecord) -> Framing:
    """What of a picture the detector of a run sees.

    Raises:
        RunError: the region of interest or the golden part is not there.
    """
    data = record.settings["data"]
    try:
        decoding = decoding_of(data)
        region = Region.recorded(folder.region_file, record.region_fill, record.region_is_exact, decoding)
    except DataError as error:
        raise RunError(f"the run's region of interest is missing or damaged: {error}") from None
    try:
        golden = GoldenPart.recorded(folder.golden_file, record.reach)
    except DataError as error:
        raise RunError(f"the run's golden part is missing or damaged: {error}") from None
    height, width = record.settings["method"]["image_size"]
    return Framing((height, width), region, Tiles.of(data), golden)


def predict(
    detector: Detector, images: Iterable[np.ndarray], precision: str = "auto", batch: int = BATCH
) -> Iterator[Found]:
    """Map and score of each image, in order.

    Args:
        images: pixels (H, W, 3) uint8 at the detector's image size.
        precision: `float32`, `bf16`, or `auto` for bf16 where the machine has it natively.
    """
    return predict_all(TorchNetwork(detector, precision), images, batch)
