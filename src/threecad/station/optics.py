"""How a picture was taken: light, focus, and where in it the part lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from threecad.images import resize_map
from threecad.verdicts import look

SIDE = 128
"""Pixels of the small picture in which the part is located."""


class Optics(NamedTuple):
    """Numbers that stay alike while lamp, lens and fixture do."""

    brightness: float  # mean grey level
    sharpness: float  # mean absolute Laplacian of the grey levels, in their standard deviations: no matter of light
    across: float  # where the edges of the part lie on average: per cent of the width from the left
    down: float  # per cent of the height from the top


def optics(pixels: np.ndarray, grey: np.ndarray) -> Optics:
    """Of pixels (H, W, 3) uint8, of which `grey` (H, W) float32 are the grey levels."""
    sharpness = float(np.abs(ndimage.laplace(grey)).mean() / max(float(grey.std()), 1.0))
    return Optics(look(pixels).brightness, sharpness, *position(grey))


def position(grey: np.ndarray) -> tuple[float, float]:
    """Centre of all edges, weighted by their height, from left and from top in per cent; the middle without any."""
    down, across = np.gradient(resize_map(grey, (SIDE, SIDE)))
    edges = np.hypot(across, down)
    whole = float(edges.sum())
    if not whole:
        return 50.0, 50.0
    places = (np.arange(SIDE) + 0.5) * 100 / SIDE
    return float(edges.sum(axis=0) @ places / whole), float(edges.sum(axis=1) @ places / whole)
