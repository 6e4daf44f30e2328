"""A run and a data root make `scores.json`: which categories, which exclusions, and the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from threecad.checkpoint import RunFolder, RunRecord, write_json
from threecad.data.loading import Progress, load_images
from threecad.data.readers import Category, list_categories, read_category
from threecad.errors import DataError
from threecad.methods import METHODS
from threecad.metrics.evaluate import Seen, evaluate, with_mean

TITLES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "p_pro": "P-PRO",
    "p_pro_per_image": "P-PRO per image",
    "p_ap": "P-AP",
    "i_ap": "I-AP",
    "p_f1_max": "P-F1",
    "i_f1_max": "I-F1",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}
"""Names of the metrics in tables for people."""


def score_run(
    run: Path,
    root: Path,
    names: Sequence[str] = (),
    *,
    counting: Callable[[str], Progress] | None = None,
    look: Callable[[Seen], None] | None = None,
) -> dict[str, Any]:
    """The content of `scores.json`, written into the run folder.

    Args:
        names: categories to score on; without, those of the run that are found at `root`.
        counting: gives a callback for the progress of a work with this title.
        look: called with every test image.

    Raises:
        DataError: a category that is not there, or that the run knows nothing of.
        RunError: the run cannot be loaded.
    """
    folder = RunFolder(run)
    detector, record = folder.load_detector()
    scores = []
    for category in [
        _without_exclusions(read_category(root, n), record) for n in choose_categories(record, root, names)
    ]:
        if counting:  # the pack that `evaluate` will find in the cache
            load_images(category.test, detector.config.image_size, counting(f"decoding {category.name}"))
        shown = counting(f"scoring {category.name}") if counting else None
        scores.append(evaluate(detector, record, category, progress=shown, look=look))
    content = finite(with_mean(scores))
    write_json(folder.scores_file, content)
    return content


def choose_categories(record: RunRecord, root: Path, names: Sequence[str] = ()) -> list[str]:
    """Names of the categories at `root` that a run is to be scored on.

    A category folder given as the root is taken whatever it is called. Otherwise a method that learns one category
    at a time is only scored on the one it has learnt.

    Raises:
        DataError: none of the run's categories is there, or another one was asked for.
    """
    found = list_categories(root)
    learnt = ", ".join(record.categories)
    if found == [root.resolve().name] and not (root / found[0]).is_dir():
        return list(names) or found
    if not names:
        names = [name for name in record.categories if name in found]
        if not names:
            raise DataError(f"the run has learnt {learnt}, found only {', '.join(found)} in {root}")
    if METHODS[record.method].scope == "category":
        for name in names:
            if name in found and name not in record.categories:
                raise DataError(f"the run has learnt '{learnt}' and says nothing of '{name}'; choose a run of that")
    return list(dict.fromkeys(names))


def finite(content: Any) -> Any:
    """The content with None in place of every number that JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _without_exclusions(category: Category, record: RunRecord) -> Category:
    """The category without the test images that the fit was told to leave out; the list travels with the run."""
    excluded = {line.removeprefix(f"{category.name}/") for line in record.exclusions}
    kept = [s for s in category.test if s.image.relative_to(category.folder).as_posix() not in excluded]
    return replace(category, test=tuple(kept))
