"""Learning-rate schedules as functions of progress.

A schedule maps the progress of its phase, 0 at the first optimiser step and towards 1 at the last, to a multiplier
of the rate. It keeps no state, so a run of any length, resumed or not, follows the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def milestones(at: Sequence[float], factor: float) -> Schedule:
    """Multiply by `factor` at each fraction of the phase in `at`: `milestones((0.8, 0.9), 0.2)`."""

    def schedule(progress: float) -> float:
        return factor ** sum(progress >= fraction for fraction in at)

    return schedule


def one_cycle(warm_up: float = 0.15, start: float = 0.04, end: float = 0.002) -> Schedule:
    """Cosine from `start` to 1 during `warm_up`, then cosine down to `end`: the shape for a short budget of steps."""

    def schedule(progress: float) -> float:
        if progress < warm_up:
            return start + (1 - start) * (1 - math.cos(math.pi * progress / warm_up)) / 2
        return end + (1 - end) * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2

    return schedule
