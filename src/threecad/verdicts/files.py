"""`good.json` and `verdict.toml`, as they lie beside a model: in a run and in a bundle."""

from __future__ import annotations

from pathlib import Path

from threecad.errors import RunError
from threecad.files import write_text
from threecad.verdicts.decide import Verdicts
from threecad.verdicts.good import GoodScores
from threecad.verdicts.settings import read_verdict

GOOD, BUDGETS = "good.json", "verdict.toml"


def write_verdicts(folder: Path, verdicts: Verdicts) -> None:
    """Replace `good.json`, then `verdict.toml`."""
    write_text(folder / GOOD, verdicts.good.model_dump_json(indent=1) + "\n")
    write_budgets(folder, verdicts)


def write_budgets(folder: Path, verdicts: Verdicts) -> None:
    """Replace `verdict.toml`."""
    write_text(folder / BUDGETS, verdicts.as_toml())


def read_verdicts(folder: Path) -> Verdicts:
    """The good parts, and the budgets in `verdict.toml`; the usual ones where it has been removed.

    Raises:
        RunError: `good.json` is missing or not ours, or `verdict.toml` is another run's.
        SettingsError: a budget that does not fit.
    """
    good_file, verdict_file = folder / GOOD, folder / BUDGETS
    try:
        good = GoodScores.from_json(good_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{good_file} cannot be read: {error}; calibrate or fit again") from None
    except RunError as error:
        raise RunError(f"{good_file}: {error}") from None
    try:
        text = verdict_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Verdicts(good)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{verdict_file} cannot be read: {error}") from None
    return Verdicts(good, read_verdict(text, good.stamp, str(verdict_file)))
