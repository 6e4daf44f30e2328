"""ThreeCAD: find defects in industrial parts from pictures of good ones.

    detector = threecad.fit("cfrg", "parts/", "runs/one", settings={"training": {"preset": "quick"}})
    threecad.load("runs/one")(images)          # -> Prediction(anomaly_map, score)

Names load what they need on first use, so that `import threecad` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threecad import metrics
    from threecad.checkpoint import load
    from threecad.fitting import build, fit
    from threecad.methods import METHODS

_HOME = {
    "METHODS": "threecad.methods",
    "build": "threecad.fitting",
    "fit": "threecad.fitting",
    "load": "threecad.checkpoint",
}

__all__ = ["METHODS", "build", "fit", "load", "metrics"]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("threecad.metrics")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'threecad' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
