"""A run or a bundle, opened: the one place that tells them apart. A bundle is opened without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from threecad.errors import RunError
from threecad.predictor import Picture, Predictor, Result
from threecad.runtime.bundle import is_bundle


def open_predictor(
    path: Path | str,
    *,
    device: str | None = None,
    precision: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Predictor:
    """The predictor of a finished run, or of a bundle; arguments and errors are those of `inference.load`.

    Raises:
        BundleError: a bundle that is damaged, or whose library is not installed.
    """
    if is_bundle(Path(path)):
        from threecad import runtime

        return runtime.load(path, device=device, precision=precision)
    refuse_unless_run(path)  # said without torch, too
    from threecad.inference import load

    return load(path, device=device, precision=precision, notify=notify)


def refuse_unless_run(path: Path | str) -> None:
    """Nothing, where a folder that is no bundle is a run.

    Raises:
        RunError: it is neither.
    """
    if not (Path(path) / "run.json").exists():
        raise RunError(
            f"expected a run folder with run.json, or a bundle with bundle.json, at {path}, found neither; "
            "`threecad fit` makes a run, `threecad export` a bundle"
        )


def predict_pictures(path: Path | str, inputs: Picture | Sequence[Picture]) -> Result | list[Result]:
    """What a run or a bundle says of one or many pictures; to look at parts again and again, open it once.

    Raises:
        RunError, BundleError: as of `open_predictor`.
        DataError: as of a `Predictor`.
    """
    return open_predictor(path)(inputs)
