"""A line that makes drawn parts: a model that is quickly fitted to them, and their pictures one after another."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threecad.data.loading import Progress
from threecad.demo.parts import KINDS, render_part, write_parts
from threecad.fitting import fit
from threecad.records import GOOD, Split

PARTS = 64
"""Good parts that are drawn for the fit; PaDiM scores each as if it had not learnt from it, so that all count."""

SIDE = 192  # px
DEFECTIVE = 0.08  # share of the parts made
LOT = 40  # parts
LAMP_LASTS, FADES_AFTER, FADES_BY, DARKEST = 200, 80, 0.003, 0.9
"""Parts under one lamp; after how many it fades, by this share with each further part, and down to this. Then somebody
mends it."""


def fit_line(out: Path, progress: Progress | None = None, notify: Callable[[str], None] = lambda line: None) -> Path:
    """The run folder of a PaDiM on drawn parts, which takes a few seconds.

    Raises:
        RunError: `out` is not empty.
    """
    write_parts(out / "data", train=PARTS, good=0, defects=0, size=SIDE, progress=progress)
    settings: dict[str, dict[str, Any]] = {
        "method": {"backbone": "embedded"},
        "training": {"preset": "quick", "precision": "float32"},
    }
    fit("padim", out / "data", out / "aluminium_cover", settings=settings, notify=notify)
    return out / "aluminium_cover"


def parts_made(start: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """Name, lot and PNG bytes of one part after another, without end; now and then one has a defect.

    Args:
        start: how many were made before; the line goes on from there.
    """
    index = start
    while True:
        rng = np.random.default_rng([7, index])
        kind = str(rng.choice(KINDS)) if rng.random() < DEFECTIVE else GOOD
        pixels = render_part(1, Split.TEST, kind, index, SIDE).image
        light = max(DARKEST, 1 - FADES_BY * max(0, index % LAMP_LASTS - FADES_AFTER))
        buffer = io.BytesIO()
        Image.fromarray((pixels * light).astype(np.uint8)).save(buffer, "PNG")
        yield f"C{index:05}", f"L{index // LOT + 1:03}", buffer.getvalue()
        index += 1
