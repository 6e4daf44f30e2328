"""Exported networks as ONNX Runtime and OpenVINO run them; each is a `Network` for a `Predictor`.

The arithmetic is float32, and OpenVINO is told so: left to itself, it takes bf16 where a processor has it, and a
difference of nearly equal features then has 4 values where float32 has 1,003.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from threecad.errors import BundleError, DataError, SettingsError
from threecad.predictor import Network
from threecad.runtime.bundle import BundleRecord
from threecad.threads import asked_threads

LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What runs the bundles of each backend; also the name of its extra in the installation."""

SETTINGS: dict[str, dict[str, str]] = {
    "onnx": {"session.intra_op.allow_spinning": "0"},  # a thread that waits leaves its processor to other programs
    "openvino": {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
}
"""What a new bundle says its backend is to be told."""


class OnnxNetwork:
    """An ONNX file in ONNX Runtime, on the CPU."""

    precision = "float32"
    device = "cpu"

    def __init__(self, file: Path, image_size: tuple[int, int], settings: dict[str, str]) -> None:
        runtime = import_onnxruntime()
        self.image_size = image_size
        self.engine = f"onnxruntime {runtime.__version__}"
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = asked_threads() or 0  # 0 is one a processor
        for name, value in settings.items():
            options.add_session_config_entry(name, value)
        try:
            self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's own exceptions have no common root
            raise BundleError(f"{file}: {self.engine} cannot open it: {_first_line(error)}") from None

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, H, W) and scores (B,), float32, of pixels (B, H, W, 3) uint8."""
        maps, scores = self.session.run(["anomaly_map", "score"], {"image": unit_range(pixels, self.image_size)})
        return maps[:, 0], scores


class OpenVINONetwork:
    """An OpenVINO model, compiled for a device of this machine."""

    precision = "float32"

    def __init__(self, file: Path, image_size: tuple[int, int], device: str, settings: dict[str, str]) -> None:
        openvino = import_openvino()
        self.image_size, self.device = image_size, device
        self.engine = f"openvino {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        if device.upper() not in core.available_devices:
            known = ", ".join(name.lower() for name in core.available_devices)
            raise SettingsError(f"expected a device that OpenVINO finds on this machine ({known}), found '{device}'")
        threads = asked_threads() if device.upper() == "CPU" else None
        told = settings | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        try:
            self.model = core.compile_model(str(file), device.upper(), told)
        except Exception as error:
            raise BundleError(f"{file}: {self.engine} cannot open it: {_first_line(error)}") from None
        self.of_thread = threading.local()  # a request serves one thread at a time

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, H, W) and scores (B,), float32, of pixels (B, H, W, 3) uint8."""
        request = getattr(self.of_thread, "request", None)
        if request is None:
            request = self.of_thread.request = self.model.create_infer_request()
        found = request.infer({0: unit_range(pixels, self.image_size)}, share_outputs=False)
        return found["anomaly_map"][:, 0], found["score"]


def open_network(file: Path, record: BundleRecord, device: str | None, precision: str | None) -> Network:
    """The network of a bundle, by its backend.

    Raises:
        BundleError: its library is not installed, or cannot open the file.
        SettingsError: a device or a precision that it does not run in.
    """
    if precision not in (None, "auto", record.precision):
        raise SettingsError(f"the bundle was proved in {record.precision}, found --precision {precision}")
    if record.backend == "openvino":
        return OpenVINONetwork(file, record.image_size, device or "cpu", record.settings)
    if device not in (None, "auto", "cpu"):
        raise SettingsError(f"a bundle for ONNX Runtime runs on the cpu, found --device {device}")
    return OnnxNetwork(file, record.image_size, record.settings)


def unit_range(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Images (B, 3, H, W) float32 in [0, 1] from pixels (B, H, W, 3) uint8; bit for bit what `to_tensor` gives.

    Raises:
        DataError: other pixels than the network was exported for.
    """
    if pixels.ndim != 4 or pixels.shape[1:] != (*image_size, 3) or pixels.dtype != np.uint8:
        height, width = image_size
        raise DataError(
            f"expected pixels (B, {height}, {width}, 3) of uint8, found {pixels.shape} of {pixels.dtype}; "
            "a Predictor takes pictures of any size"
        )
    return np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32, order="C")


def import_onnxruntime() -> Any:
    """The library, with its reports to its makers (which it has on Windows) switched off."""
    runtime = _import("onnx")
    runtime.disable_telemetry_events()
    return runtime


def import_openvino() -> Any:
    """The library, without the package through which it tells its makers of every import.

    That package reads no setting that would keep it silent; where it cannot be imported, OpenVINO goes without.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return _import("openvino")


def _import(backend: str) -> ModuleType:
    library = LIBRARIES[backend]
    try:
        return __import__(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise BundleError(
            f"this needs {library}, which is not installed; install it with: pip install 'threecad[{backend}]'"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
