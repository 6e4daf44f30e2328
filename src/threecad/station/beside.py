"""Work beside a line in a thread of its own, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from threecad.errors import ThreeCADError

Step = Callable[[], float]
"""Does a piece of work and gives the seconds to wait before the next."""


class Beside:
    """Calls `step` again and again, with a pause between; stops for good where it raises what a person must mend."""

    def __init__(self, name: str, step: Step, notify: Callable[[str], None]) -> None:
        """Begin.

        Args:
            notify: called with why it stopped, if it does by itself.
        """
        self.name, self.step, self.notify = name, step, notify
        self.stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def stop(self) -> None:
        """Finish the piece at hand."""
        self.stop_requested.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self.stop_requested.is_set():
                self.stop_requested.wait(self.step())
        except ThreeCADError as error:
            self.notify(f"{self.name} stands still: {error}")
