"""ThreeCAD: find defects in industrial parts from pictures of good ones.

    threecad.fit("cfrg", "parts/", "runs/one", settings={"training": {"preset": "quick"}})
    predictor = threecad.load("runs/one")
    predictor("part.png").verdict              # OK, REVIEW or NG of a path, a PIL image or pixels (H, W, 3) uint8

Names load what they need on first use, so that `import threecad` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threecad import metrics
    from threecad.evaluation import evaluate_run as evaluate
    from threecad.fitting import fit
    from threecad.methods import METHODS
    from threecad.opening import open_predictor as load
    from threecad.opening import predict_pictures as predict
    from threecad.presets import build

_HOME = {
    "METHODS": ("threecad.methods", "METHODS"),
    "build": ("threecad.presets", "build"),
    "evaluate": ("threecad.evaluation", "evaluate_run"),
    "fit": ("threecad.fitting", "fit"),
    "load": ("threecad.opening", "open_predictor"),
    "predict": ("threecad.opening", "predict_pictures"),
}

__all__ = ["METHODS", "__version__", "build", "evaluate", "fit", "load", "metrics", "predict"]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("threecad.metrics")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("threecad")
    if name in _HOME:
        module, attribute = _HOME[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'threecad' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
