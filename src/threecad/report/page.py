"""One self-contained `report.html`: the numbers, the curves, and the parts with what was found on them.

The numbers shown are those of `scores.json`; curves, histogram and the table of defect types are drawn from the scores
of the same images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from threecad.evaluation import TITLES, Seen, evaluate_run
from threecad.files import write_text
from threecad.images import resize_map
from threecad.methods import METHODS
from threecad.metrics.image import image_scores
from threecad.overlay import Scale, side_by_side
from threecad.runs import RunFolder, RunRecord
from threecad.verdicts import good_share

MOST_PARTS = 150
"""Parts that are shown; of more, all mistakes and an even choice of the others."""

SIDE_PX = 200  # of one panel
QUALITY = 82  # of the JPEG files inside the page
BINS = 28
PLOT = 100.0  # side of a drawing in its own units
HEADLINE = {"I-AUROC": "i_auroc", "P-AUROC": "p_auroc", "P-PRO": "p_pro", "AP": "p_ap"}


@dataclass(frozen=True, slots=True)
class Part:
    """One tested part."""

    name: str
    category: str
    defect: str
    is_defect: bool
    score: float
    good_share: float | None
    picture: bytes  # JPEG of image, ground truth, map and contour


@dataclass
class Album:
    """Collects the parts of an evaluation: `evaluate(…, on_image=album.add)`."""

    record: RunRecord
    parts: list[Part] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """Keep a small picture of what was found in one image."""
        sample, score = seen.sample, seen.found.score
        good = good_of(self.record.good_scores, sample.category)
        scale = Scale.of_good(good_of(self.record.good_peaks, sample.category)) or Scale.of_map(seen.found.anomaly_map)
        self.parts.append(
            Part(
                name=f"{sample.defect}/{sample.image.name}",
                category=sample.category,
                defect=sample.defect,
                is_defect=sample.is_defect,
                score=score,
                good_share=good_share(score, good) if good else None,
                picture=_picture(seen, scale),
            )
        )


def good_of(by_category: Mapping[str, list[float]], category: str) -> list[float]:
    """The good parts' values of a category; of the only one where the run has learnt just that, whatever its name."""
    return by_category.get(category, next(iter(by_category.values())) if len(by_category) == 1 else [])


class Threshold(NamedTuple):
    """The score from which a part is rejected on the page."""

    value: float
    why: str


def report_run(run: Path, root: Path, names: Sequence[str] = (), *, file: Path, **options: Any) -> dict[str, Any]:
    """As `evaluate_run`, with its options, and the page, written to `file`."""
    album = Album(RunFolder(run).read_record())
    scores = evaluate_run(run, root, names, on_image=album.add, **options)
    write_report(file, scores, album)
    return scores


def write_report(file: Path, scores: dict[str, Any], album: Album) -> None:
    """The page of an evaluation; opens from disk, needs nothing else.

    Args:
        scores: the content of `scores.json`.
        album: filled by that evaluation.

    Raises:
        RunError: the file cannot be written.
    """
    import jinja2

    source = resources.files("threecad.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["per_cent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["inline"] = lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    write_text(file, environment.from_string(source).render(_content(scores, album)))


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


def choose(parts: Sequence[Part], limit: float, most: int = MOST_PARTS) -> list[Part]:
    """At most `most` parts, the most unusual first: all mistakes if they fit, and an even choice of the others."""
    by_score = sorted(parts, key=lambda part: -part.score)
    wrong = [part for part in by_score if is_mistake(part, limit)]
    right = [part for part in by_score if not is_mistake(part, limit)]
    kept = _evenly(wrong, most)
    return sorted(kept + _evenly(right, most - len(kept)), key=lambda part: -part.score)


def is_mistake(part: Part, limit: float) -> bool:
    """Whether the part is a missed defect or a false alarm."""
    return part.is_defect != (part.score > limit)


def roc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, 2) false and true positive rates, from (0, 0) to (1, 1), a point for each distinct score."""
    false, true = _positives(scores, labels)
    return np.stack([false / max(false[-1], 1), true / max(true[-1], 1)], axis=1)


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, 2) recall and precision, a point for each distinct score, the highest first."""
    false, true = (counts[1:] for counts in _positives(scores, labels))
    return np.stack([true / max(true[-1], 1), true / (true + false)], axis=1)


def _positives(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives, beginning with none, as the threshold falls past each distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = labels[order].astype(int)
    return tuple(np.concatenate([[0], np.cumsum(one)[last]]) for one in (1 - hits, hits))  # type: ignore[return-value]


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
        "roc": [_path(roc(*one)) for one in curves],
        "precision_recall": [_path(precision_recall(*one)) for one in curves],
        "histogram": _histogram(values, labels, limit.value),
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


def _histogram(values: np.ndarray, labels: np.ndarray, limit: float) -> dict[str, Any]:
    """Bars of good and defective parts by score, on a logarithmic axis where scores span more than a factor of 20."""
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high > 20 * low
    scale = np.log if is_log else np.asarray
    start, stop = float(scale(low)), float(scale(high))
    stop = stop if stop > start else start + 1
    counts = [np.histogram(scale(values[which]), BINS, (start, stop))[0] for which in (~labels, labels)]
    tallest = max(int(count.max()) for count in counts)
    bars = [[PLOT * int(count) / tallest for count in one] for one in counts]
    # A threshold beyond all scores is drawn at the edge.
    at = (float(scale(limit)) - start) / (stop - start) if limit > 0 or not is_log else 0.0
    return {
        "good": bars[0],
        "defect": bars[1],
        "width": PLOT / BINS,
        "limit": PLOT * min(max(at, 0.0), 1.0),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "is_log": is_log,
        "tallest": tallest,
    }


def _path(points: np.ndarray) -> str:
    """SVG path of points in the unit square, the vertical axis upwards."""
    return "M" + "L".join(f"{PLOT * x:.2f},{PLOT * (1 - y):.2f}" for x, y in points)


def _picture(seen: Seen, scale: Scale) -> bytes:
    height, width = seen.pixels.shape[:2]
    shrink = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    pixels = np.stack([resize_map(channel, size) for channel in np.moveaxis(seen.pixels, 2, 0)], axis=2)
    mask = resize_map(seen.mask, size) > 0  # so that the smallest defect stays visible
    anomaly_map = resize_map(seen.found.anomaly_map, size)
    whole = side_by_side(np.rint(pixels).clip(0, 255).astype(np.uint8), mask, anomaly_map, scale)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _of_category(parts: Sequence[Part], name: str) -> tuple[np.ndarray, np.ndarray]:
    return _scores_and_labels([part for part in parts if part.category == name])


def _scores_and_labels(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([part.score for part in parts]), np.array([part.is_defect for part in parts])


def _evenly(parts: list[Part], most: int) -> list[Part]:
    if len(parts) <= most:
        return parts
    return [parts[index] for index in np.linspace(0, len(parts) - 1, most).round().astype(int)] if most else []
