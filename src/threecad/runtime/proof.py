"""The trained and the exported detector side by side on the same files: differences, and verdicts that differ."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from threecad.errors import BundleError
from threecad.files import file_sha256
from threecad.images import read_image
from threecad.predictor import Found, Predictor
from threecad.verdicts import FEWEST_PARTS, Verdicts, VerdictSettings

UNUSUAL = "unusual"
"""What a part is called above the threshold that stands in where there are too few good parts for a verdict."""

ON_THE_LINE = 2e-6
"""Share of a threshold within which a score equals it: that of the very part from which the threshold was learnt."""

Kind = Literal["good", "defective"]
Thresholds = Mapping[str, float]
"""Of one category: what a part is called whose score is above the value, mildest first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that both detectors are to look at."""

    path: Path
    place: str  # what it is called in the proof
    kind: Kind
    category: str


class Compared(BaseModel):
    """One picture, seen by both."""

    image: str
    sha256: str  # of the file
    kind: Kind
    category: str
    trained_score: float
    exported_score: float
    trained_verdict: str
    exported_verdict: str
    map_difference: float | None  # largest of any pixel; None where the trained detector's map is not at hand
    on_the_line: bool  # its score is a threshold: that was learnt from it

    @property
    def is_flip(self) -> bool:
        """Whether a verdict differs that the part's distance to the threshold does not excuse."""
        return self.trained_verdict != self.exported_verdict and not self.on_the_line

    @property
    def score_difference(self) -> float:
        """Between the two."""
        return abs(self.trained_score - self.exported_score)


class Ran(BaseModel):
    """Where a detector ran."""

    engine: str
    precision: str
    device: str
    machine: str


class Proof(BaseModel):
    """What `proof.json` says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    trained: Ran
    exported: Ran
    good_parts: str  # which ones
    defective_parts: str
    budgets: VerdictSettings
    thresholds_from: str
    thresholds: dict[str, dict[str, float]]  # by category
    largest_score_difference: float
    largest_map_difference: float | None
    rank_correlation: float | None  # Spearman's, of the scores; None for fewer than three pictures
    verdict_flips: int  # 0 in every bundle that is handed over
    on_the_line: int  # pictures whose own score is a threshold; they cannot flip
    nearest_to_threshold: float | None  # smallest distance of another picture's score to a threshold
    images: list[Compared]

    @property
    def flips(self) -> list[Compared]:
        """Pictures whose verdicts differ."""
        return [one for one in self.images if one.is_flip]

    def refuse_flips(self, consequence: str) -> None:
        """Nothing, where both detectors give the same verdicts.

        Args:
            consequence: the end of the sentence that says how many differ.

        Raises:
            BundleError: a verdict differs; names the picture where the scores differ most.
        """
        if not self.flips:
            return
        worst = max(self.flips, key=lambda one: one.score_difference)
        raise BundleError(
            f"the exported detector judges {len(self.flips)} of {len(self.images)} pictures "
            f"differently; {consequence}\n"
            f"{worst.image}: trained {worst.trained_score:.6g} {worst.trained_verdict} "
            f"({self.trained.engine}, {self.trained.precision}), exported {worst.exported_score:.6g} "
            f"{worst.exported_verdict} ({self.exported.engine}, {self.exported.precision})"
        )

    def summary(self) -> list[tuple[str, str]]:
        """Its figures, named, for people."""
        count = {kind: sum(one.kind == kind for one in self.images) for kind in ("good", "defective")}
        return [
            ("good parts", f"{count['good']}, {self.good_parts}"),
            ("defective parts", f"{count['defective']}, {self.defective_parts}" if count["defective"] else "none"),
            ("trained", f"{self.trained.engine}, {self.trained.precision}, {self.trained.device}"),
            ("exported", f"{self.exported.engine}, {self.exported.precision}, {self.exported.device}"),
            ("thresholds", self.thresholds_from),
            ("scores on a threshold", str(self.on_the_line)),
            ("verdicts that differ", str(self.verdict_flips)),
            ("largest difference of scores", f"{self.largest_score_difference:.2g}"),
            ("largest difference of maps", _shown(self.largest_map_difference, ".2g")),
            ("rank correlation", _shown(self.rank_correlation, ".6f")),
            ("nearest score to a threshold", _shown(self.nearest_to_threshold, ".2g")),
        ]


def look(predictor: Predictor, files: Sequence[Path], batch: int = 1) -> list[Found]:
    """What a predictor finds in each file, from the file's bytes on.

    Args:
        batch: frames that go through the network together.
    """

    pictures = (predictor.view.frames(read_image(file, **predictor.decoding)) for file in files)
    return list(predictor.inspect(pictures, batch))


def compare(
    pictures: Sequence[Picture],
    trained_scores: Sequence[float],
    trained_maps: Sequence[np.ndarray | None],
    exported: Sequence[Found],
    verdicts: Verdicts,
    thresholds: Mapping[str, Thresholds],
) -> list[Compared]:
    """Each picture as both detectors see it, and the verdicts on their scores.

    What is doubted of a picture itself, such as its brightness, is left out: both see the same pixels.

    Args:
        thresholds: as of `thresholds_of`, of each category.

    Raises:
        BundleError: a number of the exported detector is not finite.
    """
    compared = []
    for picture, score, its_map, found in zip(pictures, trained_scores, trained_maps, exported, strict=True):
        if not (math.isfinite(found.score) and np.isfinite(found.anomaly_map).all()):
            raise BundleError(f"{picture.place}: the exported detector's score or map is not finite")
        lines = thresholds[picture.category]
        compared.append(
            Compared(
                image=picture.place,
                sha256=file_sha256(picture.path),
                kind=picture.kind,
                category=picture.category,
                trained_score=score,
                exported_score=found.score,
                trained_verdict=_word(score, picture.category, verdicts, lines),
                exported_verdict=_word(found.score, picture.category, verdicts, lines),
                map_difference=None if its_map is None else float(np.abs(its_map - found.anomaly_map).max()),
                on_the_line=any(abs(score - line) <= ON_THE_LINE * abs(line) for line in lines.values()),
            )
        )
    return compared


def prove(
    compared: list[Compared],
    trained: Ran,
    exported: Ran,
    budgets: VerdictSettings,
    thresholds: Mapping[str, Thresholds],
    thresholds_from: str,
    good_parts: str,
    defective_parts: str,
) -> Proof:
    """The figures over all pictures."""
    differences = [one.map_difference for one in compared if one.map_difference is not None]
    distances = [
        abs(one.trained_score - line)
        for one in compared
        if not one.on_the_line
        for line in thresholds[one.category].values()
    ]
    return Proof(
        trained=trained,
        exported=exported,
        budgets=budgets,
        good_parts=good_parts,
        defective_parts=defective_parts,
        thresholds_from=thresholds_from,
        thresholds={name: dict(lines) for name, lines in thresholds.items()},
        largest_score_difference=max(one.score_difference for one in compared),
        largest_map_difference=max(differences, default=None),
        rank_correlation=_rank_correlation(compared),
        verdict_flips=sum(one.is_flip for one in compared),
        on_the_line=sum(one.on_the_line for one in compared),
        nearest_to_threshold=min(distances, default=None),
        images=compared,
    )


def ran(predictor: Predictor, engine: str | None = None) -> Ran:
    """Where a predictor runs; of an exported one the engine is known."""
    network = predictor.network
    return Ran(
        engine=engine or str(getattr(network, "engine", "?")),
        precision=network.precision,
        device=str(getattr(network, "device", "cpu")),
        machine=f"{platform.system()} {platform.machine()}",
    )


def thresholds_of(verdicts: Verdicts, category: str, seen: Sequence[float]) -> dict[str, float]:
    """The thresholds behind a category's verdicts; where too few good parts are known, one just above those `seen`."""
    if verdicts.can_judge(category):
        limits = verdicts.limits(category)
        return {"REVIEW": limits.review.threshold, "NG": limits.reject.threshold}
    highest, median = float(np.max(seen)), float(np.median(seen))
    return {UNUSUAL: highest + max(0.05 * (highest - median), 1e-3 * abs(highest))}


def source_of(verdicts: Verdicts, categories: Sequence[str]) -> str:
    """Where the thresholds come from, in words."""
    few = [name for name in categories if not verdicts.can_judge(name)]
    if not few:
        return "those of the run's verdicts"
    return f"just above the good parts of this proof in {', '.join(few)}: verdicts need {FEWEST_PARTS} good parts"


def _word(score: float, category: str, verdicts: Verdicts, thresholds: Thresholds) -> str:
    if verdicts.can_judge(category):
        return verdicts.decide(score, category).word
    return UNUSUAL if score > thresholds[UNUSUAL] else "OK"


def _rank_correlation(compared: Sequence[Compared]) -> float | None:
    trained = [one.trained_score for one in compared]
    exported = [one.exported_score for one in compared]
    if len(set(trained)) < 3 or len(set(exported)) < 3:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(trained, exported).statistic)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
