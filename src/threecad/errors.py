"""The errors a person can mend.

Every message says what was expected, what was found, where, and what to do. The command line prints it as it is
and exits with 2; anything else that reaches the user is a bug of ours.

    ThreeCADError
    ├── DataError          a folder, an image or a mask is not what it should be
    ├── SettingsError      an unknown name or a value out of range
    ├── WeightsError       pretrained weights that are not here, or do not fit
    ├── RunError           a run folder that is not empty, not complete, or of something else
    ├── FileError          a file that cannot be written, or is not what it should be
    └── MetricError        scores and labels from which no metric can be computed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThreeCADError(Exception):
    """Root of the tree: something that the user can mend, said in at most three lines."""


class DataError(ThreeCADError):
    """A folder, an image or a mask is not what it should be."""


class SettingsError(ThreeCADError):
    """An unknown name or a value out of range."""


class WeightsError(ThreeCADError):
    """Pretrained weights that are not on this machine, or do not fit the network."""


class RunError(ThreeCADError):
    """A run folder that is not empty, not complete, or belongs to something else."""


class BundleError(ThreeCADError):
    """A bundle that is damaged, cannot run here, or gives other verdicts than the run it was made from."""


class FileError(ThreeCADError):
    """A file that cannot be written, or that holds something else than it should."""


class MetricError(ThreeCADError):
    """Scores and labels from which no metric can be computed."""


_MOST_LISTED = 40
"""Known names that a message lists, at most; nobody reads the 1,800 tags of timm."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'x'?`, else the known names if they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.lower(), [known_name.lower() for known_name in names], n=1, cutoff=0.5
    )
    if close:
        original = next(known_name for known_name in names if known_name.lower() == close[0].lower())
        return f"; did you mean '{original}'?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= _MOST_LISTED else ""
