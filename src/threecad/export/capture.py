"""The trained detector as one graph, written as ONNX or OpenVINO.

Both files come from the same capture by `torch.export`, in float32, for batches of any size. Its input is `image`
(B, 3, H, W) in [0, 1], its outputs are `anomaly_map` (B, 1, H, W) and `score` (B,), raw. The files also say in the
words of ModelAPI what they are, so that other programs of the field read them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from threecad.detector import Detector
from threecad.errors import BundleError
from threecad.overlay import Scale
from threecad.runtime.bundle import Backend
from threecad.runtime.networks import import_openvino

LARGEST_BATCH = 1024
ONE_FILE_BYTES = 2**31
"""Above it, ONNX keeps tensors in a second file: its container has no room for more."""


def capture(detector: Detector) -> ExportedProgram:
    """The detector's forward pass as one graph.

    Raises:
        BundleError: the method cannot be captured; names it and the first reason.
    """
    height, width = detector.config.image_size
    images = torch.zeros(2 * detector.places, 3, height, width)  # a batch of one would be taken for a constant
    parts = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    batch = parts if detector.places == 1 else detector.places * parts
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(detector, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever tracing runs into in a method's code
        raise BundleError(f"{type(detector).__name__} cannot be captured as one graph: {_reason(error)}") from None


def write_model(
    program: ExportedProgram, backend: Backend, folder: Path, about: Mapping[str, str], image_size: tuple[int, int]
) -> tuple[str, int | None]:
    """The file in `folder` that the backend opens, and the opset of an ONNX file, as read back from it.

    Args:
        about: of `model_info`.
        image_size: height and width of what it looks at, which OpenVINO does not take from the program.

    Raises:
        BundleError: the backend has no such operator, or its library is not installed.
    """
    try:
        with _quiet():
            if backend == "onnx":
                return "detector.onnx", _write_onnx(program, folder / "detector.onnx", about)
            _write_openvino(program, folder / "detector.xml", about, image_size)
            return "detector.xml", None
    except (BundleError, OSError):
        raise
    except ModuleNotFoundError as error:
        raise BundleError(
            f"the export needs {error.name}, which is not installed; install it with: pip install 'threecad[train]'"
        ) from None
    except Exception as error:
        raise BundleError(f"the graph cannot be written as {backend}: {_reason(error)}") from None


def model_info(method: str, image_size: tuple[int, int], scale: Scale | None) -> dict[str, str]:
    """What ModelAPI reads of an anomaly detector.

    Its score of a picture is the largest value of the map, so both of its thresholds are those of maps.

    Args:
        scale: of good parts' maps; without any, no threshold is said.
    """
    height, width = image_size
    about = {
        "model_type": "AnomalyDetection",
        "model_name": f"threecad {method}",
        "task": "segmentation",
        "labels": "Normal Anomaly",
        "image_shape": f"{height} {width}",
        "resize_type": "standard",
        "reverse_input_channels": "True",  # it hands over pictures in the order of OpenCV
    }
    if scale is not None:
        thresholds = dict.fromkeys(("image_threshold", "pixel_threshold"), repr(scale.threshold))
        about |= thresholds | {"normalization_scale": repr(2 * (scale.threshold - scale.low))}
    return about


def _write_onnx(program: ExportedProgram, file: Path, about: Mapping[str, str]) -> int:
    import onnx
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    exported = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=["anomaly_map", "score"],
        external_data=False,
        verbose=False,
        optimize=False,  # looks through the whole graph at every node: minutes for RealNet's thousands
    )
    if exported is None:
        raise BundleError("PyTorch's exporter gave no ONNX program")
    fold_constants(exported.model)  # in a second; what else there is to fuse, ONNX Runtime does when it loads the file
    remove_unused_nodes(exported.model)
    exported.model.metadata_props.update({f"model_info {key}": value for key, value in about.items()})
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    exported.save(file, external_data=size >= ONE_FILE_BYTES)
    model = onnx.load(file, load_external_data=False)
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


def _write_openvino(
    program: ExportedProgram, file: Path, about: Mapping[str, str], image_size: tuple[int, int]
) -> None:
    openvino = import_openvino()
    model = openvino.convert_model(program)
    model.reshape(openvino.PartialShape([-1, 3, *image_size]))
    model.inputs[0].get_tensor().set_names({"image"})
    for output, name in zip(model.outputs, ("anomaly_map", "score"), strict=True):
        output.get_tensor().set_names({name})
    for key, value in about.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, file, compress_to_fp16=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about operators that they do not fold."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "openvino")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
