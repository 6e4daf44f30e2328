"""A simulated line for `threecad serve --demo`: drawn parts, one after another, inspected as real ones are."""

from __future__ import annotations

from threecad.demo.line import parts_made
from threecad.station.beside import Step
from threecad.station.line import BusyError, Line

EVERY_S = 1.5
"""Seconds between two parts."""


def simulated(line: Line) -> Step:
    """The step of a line that goes on where the store's simulated parts end."""
    parts = parts_made(line.store.read("SELECT count(*) FROM parts WHERE simulated")[0][0])

    def step() -> float:
        name, lot, content = next(parts)
        try:
            with line.place():
                line.inspect(content, name, lot=lot, simulated=True)
        except BusyError:
            pass  # the part goes by, as it would on a line
        return EVERY_S

    return step
