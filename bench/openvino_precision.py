"""Says what OpenVINO's bf16 does to a bundle: everywhere, and in convolutions alone with all distances in float32.

    python bench/openvino_precision.py BUNDLE [--rounds 10]

The bundle's own pictures are looked at. Convolutions and what only scales, adds or clips their outputs may be rounded;
every other operator is marked `precise` in the model's file, which OpenVINO's CPU plugin obeys. That no distance was
rounded is read back from the compiled model. Needs a processor with native bf16; without, all rows are float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from threecad.images import IMAGE_SUFFIXES, read_image
from threecad.runtime import load
from threecad.runtime.bundle import Bundle
from threecad.runtime.networks import SETTINGS, import_openvino, unit_range

CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData"}
BETWEEN = {"Add", "Clamp", "HSwish", "MaxPool", "Multiply", "Pad", "ReLU", "Sigmoid", "Swish"}
"""What may be rounded where its inputs are; a product of two features is a distance and never is."""

MOST_DEEP = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="for OpenVINO")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    bundle, predictor = Bundle(options.bundle), load(options.bundle)
    files = sorted(path for path in bundle.pictures.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    frames = np.concatenate([predictor.view.frames(read_image(path, **predictor.decoding)).pixels for path in files])
    images = unit_range(frames, predictor.image_size)
    openvino = import_openvino()
    original = bundle.path / bundle.read_record().model
    with tempfile.TemporaryDirectory() as folder:
        marked = mark_distances(original, Path(folder) / original.name)
        (Path(folder) / f"{original.stem}.bin").symlink_to(original.with_suffix(".bin").resolve())
        wanted = {
            "float32": (original, "f32"),
            "bf16": (original, "bf16"),
            "bf16 in convolutions alone": (marked, "bf16"),
        }
        core = openvino.Core()
        models = {
            name: core.compile_model(str(file), "CPU", SETTINGS["openvino"] | {"INFERENCE_PRECISION_HINT": hint})
            for name, (file, hint) in wanted.items()
        }
    found = {name: look(model, images) for name, model in models.items()}
    taken = in_turn(list(models.values()), images[:1], options.rounds)
    maps, scores = found["float32"]
    print(
        f"{predictor.method}, {len(images)} frames, OpenVINO {openvino.__version__.split('-')[0]}; scores in float32 "
    )
    print(f"from {scores.min():.4g} to {scores.max():.4g}, maps up to {maps.max():.4g}\n")
    print("| precision | operators in bf16 | largest difference of scores | of maps | times faster, median | fastest |")
    print("|---|---|---:|---:|---:|---:|")
    for (name, (its_maps, its_scores)), its_taken in zip(found.items(), taken, strict=True):
        cells = [
            rounded(models[name]),
            f"{np.abs(its_scores - scores).max():.2g}",
            f"{np.abs(its_maps - maps).max():.2g}",
            f"{np.median(taken[0]) / np.median(its_taken):.2f}",
            f"{taken[0].min() / its_taken.min():.2f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def mark_distances(model: Path, out: Path) -> Path:
    """`out`, a model file in which all but convolutions and what follows them directly is marked to stay float32."""
    sys.setrecursionlimit(MOST_DEEP)
    tree = ElementTree.parse(model)
    layers = {layer.get("id", ""): layer for layer in tree.getroot().find("layers") or []}
    sources: dict[str, list[str]] = {name: [] for name in layers}
    for edge in tree.getroot().find("edges") or []:
        sources[edge.get("to-layer", "")].append(edge.get("from-layer", ""))
    fixed: dict[str, bool] = {}
    rough: dict[str, bool] = {}

    def visit(name: str) -> None:
        if name in fixed:
            return
        for source in sources[name]:
            visit(source)
        kind = layers[name].get("type")
        fixed[name] = kind == "Const" or (bool(sources[name]) and all(fixed[source] for source in sources[name]))
        data = [source for source in sources[name] if not fixed[source]]
        follows = kind in BETWEEN and bool(data) and all(rough[source] for source in data)
        rough[name] = kind in CONVOLUTIONS or (follows and not (kind == "Multiply" and len(data) > 1))

    for name, layer in layers.items():
        visit(name)
        if rough[name] or layer.get("type") in ("Const", "Parameter", "Result"):
            continue
        said = layer.find("rt_info")
        if said is None:
            said = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, said)
        ElementTree.SubElement(said, "attribute", {"name": "precise", "version": "0"})
    tree.write(out, encoding="utf-8", xml_declaration=True)
    return out


def rounded(model: Any) -> str:
    """How many operators of each kind a compiled model has in bf16; what only moves values is left out."""
    counted = Counter(
        told["layerType"].astype(str)
        for told in (operator.get_rt_info() for operator in model.get_runtime_model().get_ops())
        if told["runtimePrecision"].astype(str) == "bf16"
    )
    moving = ("Reorder", "Reshape", "ShapeOf", "Transpose", "Broadcast", "Concatenation", "StridedSlice", "Interpolate")
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()) if kind not in moving) or "none"


def look(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps and scores."""
    found = model({0: images})
    return found["anomaly_map"].copy(), found["score"].copy()


def in_turn(models: list[Any], image: np.ndarray, rounds: int) -> np.ndarray:
    """(models, rounds) seconds of one look, after one that does not count."""
    taken = np.empty((len(models), rounds + 1))
    for round_ in range(rounds + 1):
        for index, model in enumerate(models):
            start = time.perf_counter()
            model({0: image})
            taken[index, round_] = time.perf_counter() - start
    return taken[:, 1:]


if __name__ == "__main__":
    main()
