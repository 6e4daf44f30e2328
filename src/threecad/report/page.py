"""One self-contained `report.html`: the numbers, the curves, and the parts with what was found on them.

The numbers shown are those of `scores.json`; curves, histogram and the table of defect types are drawn from the scores
of the same images.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from threecad.evaluation import TITLES, evaluate_run
from threecad.files import write_text
from threecad.methods import METHODS
from threecad.metrics.image import image_scores
from threecad.overlay import Scale
from threecad.report.album import Album, Part, choose, is_mistake
from threecad.report.curves import curve_path, histogram, precision_recall, roc, training_curves
from threecad.runs import RunFolder, RunRecord

HEADLINE = {"I-AUROC": "i_auroc", "P-AUROC": "p_auroc", "P-PRO": "p_pro", "AP": "p_ap"}


class Threshold(NamedTuple):
    """The score from which a part is rejected on the page."""

    value: float
    why: str


def report_run(run: Path, root: Path, names: Sequence[str] = (), *, file: Path, **options: Any) -> dict[str, Any]:
    """As `evaluate_run`, with its options, and the page, written to `file`."""
    album = Album(RunFolder(run).read_record())
    scores = evaluate_run(run, root, names, on_image=album.add, **options)
    write_report(file, scores, album, RunFolder(run).metrics_file)
    return scores


def write_report(file: Path, scores: dict[str, Any], album: Album, log: Path | None = None) -> None:
    """The page of an evaluation; opens from disk, needs nothing else.

    Args:
        scores: the content of `scores.json`.
        album: filled by that evaluation.
        log: metrics.csv of the fit, for the curves of its training.

    Raises:
        FileError: the file cannot be written.
    """
    import jinja2

    source = resources.files("threecad.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["per_cent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["inline"] = lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    write_text(
        file,
        environment.from_string(source).render(
            _content(scores, album) | {"training": training_curves(log) if log else []}
        ),
    )


def threshold(parts: Sequence[Part], good_scores: Sequence[float]) -> Threshold:
    """Where 98 % of the good parts that the fit kept aside stay below; without those, where F1 is largest here."""
    scale = Scale.of_good(good_scores)
    if scale is not None:
        return Threshold(
            scale.threshold, f"98 % of the {len(good_scores)} good parts kept aside by the fit score lower"
        )
    scores, labels = _scores_and_labels(parts)
    candidates = np.unique(scores)
    f1 = [2 * (labels & (scores >= c)).sum() / (labels.sum() + (scores >= c).sum()) for c in candidates]
    best = np.nextafter(candidates[int(np.argmax(f1))], -np.inf)  # rejected is what lies above
    return Threshold(float(best), "the largest F1 on these very parts: no honest choice")


def _content(scores: dict[str, Any], album: Album) -> dict[str, Any]:
    record, parts = album.record, album.parts
    limit = threshold(parts, [score for values in record.good_scores.values() for score in values])
    by_category = scores.get("categories") or {scores["category"]: scores}
    summary = scores.get("mean", scores)
    shown = choose(parts, limit.value)
    values, labels = _scores_and_labels(parts)
    curves = [_of_category(parts, name) for name in by_category]
    return {
        "paper": METHODS.paper(record.method),
        "method": record.method,
        "categories": list(by_category),
        "headline": {title: summary[key] for title, key in HEADLINE.items()},
        "details": {name: {title: one[key] for key, title in TITLES.items()} for name, one in by_category.items()},
        "counts": {key: sum(one[key] for one in by_category.values()) for key in ("n_good", "n_defect", "n_vanished")},
        "facts": _facts(record, next(iter(by_category.values()))),
        "limit": limit,
        "caught": int((labels & (values > limit.value)).sum()),
        "rejected": int((~labels & (values > limit.value)).sum()),
        "types": _types(parts, limit.value),
        "roc": [curve_path(roc(*one)) for one in curves],
        "precision_recall": [curve_path(precision_recall(*one)) for one in curves],
        "histogram": histogram(values, labels, limit.value),
        "parts": shown,
        "missed": [part for part in shown if part.is_defect and is_mistake(part, limit.value)],
        "alarms": [part for part in shown if not part.is_defect and is_mistake(part, limit.value)],
        "left_out": len(parts) - len(shown),
        "with_category": len(by_category) > 1,
    }


def _facts(record: RunRecord, scores: dict[str, Any]) -> dict[str, str]:
    size, compared = scores["image_size"], scores["evaluation_size"]
    minutes, seconds = divmod(round(record.duration_s), 60)
    facts = {
        "Learnt from": ", ".join(record.categories),
        "Backbone": record.backbone or "none",
        "Image size": f"{size[0]}×{size[1]}, compared at {compared[0]}×{compared[1]}",
        "Textures": record.texture_source or "none",
        "Schedule": f"{record.preset}, {record.steps} steps, seed {record.seed}",
        "Fitted in": f"{minutes}:{seconds:02} min, {record.precision}, {record.threads} threads",
        "Machine": record.hardware,
        "Version": f"ThreeCAD {record.version}, torch {record.libraries.get('torch', '?')}",
    }
    if record.exclusions:
        facts["Left out"] = f"{len(record.exclusions)} listed images"
    return facts


def _types(parts: Sequence[Part], limit: float) -> list[dict[str, Any]]:
    """A row for each defect type: how many, how many are caught, and how well they stand apart from the good parts."""
    good = [part.score for part in parts if not part.is_defect]
    rows = []
    for defect in sorted({part.defect for part in parts if part.is_defect}):
        found = [part.score for part in parts if part.defect == defect]
        labels = [False] * len(good) + [True] * len(found)
        rows.append(
            {
                "defect": defect,
                "count": len(found),
                "caught": sum(score > limit for score in found),
                "i_auroc": image_scores([*good, *found], labels).i_auroc,
            }
        )
    return rows


def _of_category(parts: Sequence[Part], name: str) -> tuple[np.ndarray, np.ndarray]:
    return _scores_and_labels([part for part in parts if part.category == name])


def _scores_and_labels(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([part.score for part in parts]), np.array([part.is_defect for part in parts])
