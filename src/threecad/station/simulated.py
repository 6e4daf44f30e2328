"""A simulated line for `threecad serve --demo`: drawn parts, one after another, inspected as real ones are."""

from __future__ import annotations

import threading
from collections.abc import Callable

from threecad.demo.line import parts_made
from threecad.errors import ThreeCADError
from threecad.station.line import BusyError, Line

EVERY_S = 1.5
"""Seconds between two parts."""


def simulate(line: Line, notify: Callable[[str], None], every_s: float = EVERY_S) -> Callable[[], None]:
    """What stops the line, which runs from now on in a thread of its own."""
    stop = threading.Event()

    def run() -> None:
        start = line.store.read("SELECT count(*) FROM parts WHERE simulated")[0][0]
        for name, lot, content in parts_made(start):
            if stop.is_set():
                return
            try:
                with line.place():
                    line.inspect(content, name, lot=lot, simulated=True)
            except BusyError:
                pass  # the part goes by, as it would on a line
            except ThreeCADError as error:
                notify(f"the simulated line stands still: {error}")
                return
            stop.wait(every_s)

    thread = threading.Thread(target=run, name="simulated line")
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end
