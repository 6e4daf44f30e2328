"""Says what int8 would cost and gain: an exported detector against itself with quantised convolutions.

    python bench/int8.py BUNDLE ROOT CATEGORY [--calibrate 32] [--every 4] [--rounds 20]

The bundle is an ONNX one. ONNX Runtime's post-training quantisation learns the ranges of activations from good training
parts alone; distances, statistics and everything else stays float32. All convolutions are quantised, and then those of
one network at a time. Known defects say what is lost. One thread; times are ratios of one run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from threecad.data.loading import load_images, load_masks
from threecad.data.readers import read_category
from threecad.metrics.image import image_scores
from threecad.metrics.pixel import pixel_scores
from threecad.runtime import load
from threecad.runtime.bundle import Bundle
from threecad.runtime.networks import unit_range

CONVOLUTIONS = ("Conv", "ConvTranspose")
HEADER = ("quantised convolutions", "I-AUROC", "AP", "scores: rank correlation", "times faster, median", "fastest")


class Pictures(CalibrationDataReader):
    """Good parts, one at a time."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self.rows: Iterator[dict[str, np.ndarray]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="for ONNX Runtime")
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--calibrate", type=int, default=32, help="good parts that ranges are learnt from")
    parser.add_argument("--every", type=int, default=4, help="take every n-th test image")
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    bundle, predictor = Bundle(asked.bundle), load(asked.bundle)
    file, size = bundle.path / bundle.read_record().model, predictor.image_size
    category = read_category(asked.root, asked.category)

    tested = category.test[:: asked.every]
    images, labels = unit_range(np.array(load_images(tested, size)), size), [sample.is_defect for sample in tested]
    masks = load_masks(tested, size)
    good = category.train[:: max(1, len(category.train) // asked.calibrate)][: asked.calibrate]
    learnt = unit_range(np.array(load_images(good, size)), size)
    model = onnx.load(file)
    networks = sorted({scope for node in model.graph.node if (scope := network_of(node)) is not None})
    wanted = {"all": None, **{name: name for name in networks}}
    sessions = {"none": session(file)}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in wanted.items():
            out = Path(folder) / f"{name}.onnx"
            nodes = [
                node.name for node in model.graph.node if network in (None, network_of(node)) and is_convolution(node)
            ]
            quantize_static(
                str(file),
                str(out),
                Pictures(learnt, model.graph.input[0].name),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(CONVOLUTIONS),
                nodes_to_quantize=nodes,
            )
            sessions[name] = session(out)
    taken = in_turn(list(sessions.values()), images[:1], asked.rounds)
    print(f"{predictor.method}, {asked.category}, {len(images)} test images, ranges from {len(learnt)} good parts\n")
    print(f"| {' | '.join(HEADER)} |")
    print("|---|---:|---:|---:|---:|---:|")
    exact: np.ndarray | None = None
    for (name, one), seconds in zip(sessions.items(), taken, strict=True):
        maps, scores = look(one, images)
        exact = scores if exact is None else exact
        cells = [
            f"{100 * image_scores(scores, labels).i_auroc:.1f}",
            f"{100 * pixel_scores(maps, masks, threads=1).p_ap:.1f}",
            f"{np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(scores)))[0, 1]:.3f}",
            f"{np.median(taken[0]) / np.median(seconds):.2f}",
            f"{taken[0].min() / seconds.min():.2f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def is_convolution(node: Any) -> bool:
    return node.op_type in CONVOLUTIONS


def network_of(node: Any) -> str | None:
    """Which of the detector's networks a convolution belongs to, by the first weight that it reads."""
    if not is_convolution(node):
        return None
    for name in node.input[1:]:
        if "." in name:
            return name.split(".")[0]
    return None


def session(file: Path) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def look(network: InferenceSession, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, H, W) and scores (N,)."""
    name = network.get_inputs()[0].name
    found = [network.run(["anomaly_map", "score"], {name: image[None]}) for image in images]
    return np.concatenate([maps[:, 0] for maps, _ in found]), np.concatenate([scores for _, scores in found])


def in_turn(networks: list[InferenceSession], image: np.ndarray, rounds: int) -> np.ndarray:
    """(networks, rounds) seconds of one look, after one that does not count."""
    taken = np.empty((len(networks), rounds + 1))
    for round_ in range(rounds + 1):
        for index, network in enumerate(networks):
            start = time.perf_counter()
            network.run(None, {network.get_inputs()[0].name: image})
            taken[index, round_] = time.perf_counter() - start
    return taken[:, 1:]


if __name__ == "__main__":
    main()
