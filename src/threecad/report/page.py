"""One self-contained `report.html`: the numbers, the curves, and the parts with what was found on them.

The numbers shown are those of `scores.json`; curves, histogram and the table of defect types are drawn from the scores
of the same images.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threecad.data.readers import read_category
from threecad.evaluation import TITLES, Seen, choose_categories, evaluate_run
from threecad.files import write_text
from threecad.inference import load
from threecad.methods import METHODS, row_name
from threecad.metrics.image import image_scores
from threecad.predictor import Predictor
from threecad.report.album import Album, Part, as_jpeg, category_of, choose, is_mistake
from threecad.report.curves import curve_path, histogram, precision_recall, roc, training_curves
from threecad.report.sheet import MOST, Maps, SheetParts, compose
from threecad.runs import RunFolder, RunRecord
from threecad.verdicts import Verdicts, scores_plot

WORDS = ("NG", "REVIEW", "OK")
HEADLINE = {"I-AUROC": "i_auroc", "P-AUROC": "p_auroc", "P-PRO pooled": "p_pro", "AP": "p_ap"}


CONFESSION = (
    "The run cannot judge: it has too few good parts to compare with. Rejected here is what scores above {0:.4g}, "
    "where F1 is largest on these very parts, which is no honest choice."
)


def report_run(
    run: Path, root: Path, names: Sequence[str] = (), *, file: Path, beside: Sequence[Path] = (), **options: Any
) -> dict[str, Any]:
    """As `evaluate_run`, with its options, and the page, written to `file`.

    Args:
        beside: runs of the same categories whose maps stand on the page's sheet, too.

    Raises:
        DataError: one of them has not learnt the categories.
    """
    folder = RunFolder(run)
    record = folder.read_record()
    album = Album(record, folder.read_verdicts())
    tests = {name: read_category(root, name).test for name in choose_categories(record, root, names)}
    parts = SheetParts(tests.values(), each=max(1, MOST // len(tests)))

    def on_image(seen: Seen) -> None:
        album.add(seen)
        parts.add(seen)

    for other in beside:  # before the work, not after it
        choose_categories(RunFolder(other).read_record(), root, list(tests))
    scores = evaluate_run(run, root, names, on_image=on_image, **options)
    rows = {_title(record): parts.maps}
    for other in beside:
        title = _title(RunFolder(other).read_record())
        maps = _maps_of(load(other, device=options.get("device")), parts)
        rows[title if title not in rows else f"{title}\n{other.name}"] = maps
    write_report(file, scores, album, folder.metrics_file, compose(rows) if parts.maps else None)
    return scores


def write_report(
    file: Path, scores: dict[str, Any], album: Album, log: Path | None = None, sheet: Image.Image | None = None
) -> None:
    """The page of an evaluation; opens from disk, needs nothing else.

    Args:
        scores: the content of `scores.json`.
        album: filled by that evaluation.
        log: metrics.csv of the fit, for the curves of its training.
        sheet: maps of one or several methods side by side.

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
    content = _content(scores, album)
    content |= {"training": training_curves(log) if log else [], "sheet": as_jpeg(sheet) if sheet else None}
    write_text(file, environment.from_string(source).render(content))


def _maps_of(predictor: Predictor, parts: SheetParts) -> Maps:
    """What another run finds in the parts of a sheet."""
    found: Maps = {}
    for image, place in parts.chosen.items():
        if place in parts.maps:
            category = category_of(predictor.verdicts, place.rpartition("/")[0])
            found[place] = {**parts.maps[place], "map": predictor(image, category).anomaly_map}
    return found


def _title(record: RunRecord) -> str:
    """The method's name as in tables, what is ours in a line of its own."""
    return row_name(record.method, record.settings["method"]).replace(", ", ",\n")


def judged(parts: Sequence[Part], verdicts: Verdicts) -> tuple[list[Part], list[str]]:
    """The parts with their verdicts, and what those promise, in sentences.

    Without good parts to compare with, rejected is what lies above the threshold of the largest F1; that is confessed.
    """
    names = [name for name in verdicts.good.categories if verdicts.can_judge(name)]
    if names:
        several = len(names) > 1
        return list(parts), [f"{name}: {s}" if several else s for name in names for s in verdicts.sentences(name)]
    scores, labels = _scores_and_labels(parts)
    candidates = np.unique(scores)
    f1 = [2 * (labels & (scores >= c)).sum() / (labels.sum() + (scores >= c).sum()) for c in candidates]
    limit = float(np.nextafter(candidates[int(np.argmax(f1))], -np.inf))  # rejected is what lies above
    return [replace(one, verdict="NG" if one.score > limit else "OK") for one in parts], [CONFESSION.format(limit)]


def _plots(verdicts: Verdicts, parts: Sequence[Part]) -> list[str]:
    """For each category the good parts' scores, those of the defects here, and both thresholds, as SVG."""
    return [
        scores_plot(
            verdicts.good.scores(name),
            verdicts.limits(name),
            [part.score for part in parts if part.is_defect and category_of(verdicts, part.category) == name],
            title=name,
        )
        for name in verdicts.good.categories
        if verdicts.can_judge(name)
    ]


def _content(scores: dict[str, Any], album: Album) -> dict[str, Any]:
    record = album.record
    parts, promises = judged(album.parts, album.verdicts)
    by_category = scores.get("categories") or {scores["category"]: scores}
    summary = scores.get("mean", scores)
    shown = choose(parts)
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
        "promises": promises,
        "plots": _plots(album.verdicts, parts),
        "verdicts": {
            what: {word: sum(one.verdict == word and one.is_defect == bad for one in parts) for word in WORDS}
            for what, bad in (("defective", True), ("good", False))
        },
        "types": _types(parts),
        "roc": [curve_path(roc(*one)) for one in curves],
        "precision_recall": [curve_path(precision_recall(*one)) for one in curves],
        "histogram": histogram(values, labels),
        "parts": shown,
        "missed": [part for part in shown if part.is_defect and is_mistake(part)],
        "alarms": [part for part in shown if not part.is_defect and is_mistake(part)],
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


def _types(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """A row for each defect type: how many, their verdicts, and how well they stand apart from the good parts."""
    good = [part.score for part in parts if not part.is_defect]
    rows = []
    for defect in sorted({part.defect for part in parts if part.is_defect}):
        those = [part for part in parts if part.is_defect and part.defect == defect]
        found = [part.score for part in those]
        labels = [False] * len(good) + [True] * len(found)
        rows.append(
            {
                "defect": defect,
                "count": len(found),
                "verdicts": {word: sum(part.verdict == word for part in those) for word in WORDS},
                "i_auroc": image_scores([*good, *found], labels).i_auroc,
            }
        )
    return rows


def _of_category(parts: Sequence[Part], name: str) -> tuple[np.ndarray, np.ndarray]:
    return _scores_and_labels([part for part in parts if part.category == name])


def _scores_and_labels(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([part.score for part in parts]), np.array([part.is_defect for part in parts])
