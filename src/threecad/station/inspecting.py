"""A run or a bundle as a recipe: the only file of the station that asks a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from threecad.errors import SettingsError
from threecad.images import Decoding, read_image, resize_map
from threecad.opening import open_predictor
from threecad.overlay import Scale
from threecad.predictor import Predictor, Result
from threecad.station.optics import Optics, optics
from threecad.verdicts import GoodLooks, GoodPart, Look, Verdicts, image_name, look, per_cent


@dataclass(frozen=True, slots=True)
class Seen:
    """What a recipe says of one picture."""

    result: Result
    optics: Optics
    thumbnail: np.ndarray  # (16, 16) float32 grey levels, to find similar parts by


@dataclass(frozen=True)
class Recipe:
    """How the parts of one kind are inspected. Immutable: another model or other thresholds make another recipe."""

    name: str
    folder: Path  # of the run or the bundle
    category: str
    predictor: Predictor
    model: str  # SHA-256 of the detector
    budgets_of_run: dict[str, Any]  # as its folder has them

    def inspect(self, picture: Path) -> Seen:
        """What is found in a picture file.

        Raises:
            DataError: it cannot be read, or has no finite score.
        """
        pixels = read_image(picture, **self.decoding)
        result = self.predictor(pixels, self.category)
        grey = pixels.mean(axis=2, dtype=np.float32)
        return Seen(result, optics(pixels, grey), resize_map(grey, (16, 16)))

    @property
    def verdicts(self) -> Verdicts:
        """Its good parts and budgets."""
        return self.predictor.verdicts

    @property
    def decoding(self) -> Decoding:
        """How picture files become pixels."""
        return self.predictor.decoding

    @property
    def good_scores(self) -> np.ndarray:
        """(n,) float64 of the good parts that the thresholds stand on."""
        return self.verdicts.good.scores(self.category)

    def good_spread(self, what: str) -> tuple[float, ...]:
        """Lowest and highest of its good parts, of the score or the brightness; empty where it is not known."""
        if what == "score" and len(self.good_scores):
            return float(self.good_scores.min()), float(self.good_scores.max())
        looks = self.verdicts.good.looks.get(self.category)
        return (looks.lowest.brightness, looks.highest.brightness) if what == "brightness" and looks else ()

    @property
    def thresholds(self) -> dict[str, float]:
        """Scores above which a part is set aside and rejected, and the share of good parts that will be at most.

        Empty with too few good parts for any.
        """
        if not self.verdicts.can_judge(self.category):
            return {}
        limits = self.verdicts.limits(self.category)
        return {
            "review": limits.review.threshold,
            "reject": limits.reject.threshold,
            "promised_review": limits.review.promised,
            "promised_reject": limits.reject.promised,
            "region": limits.region.threshold,
        }

    @property
    def promises(self) -> list[str]:
        """The bounds in words."""
        if self.verdicts.distrust:
            return [f"Every part is REVIEW: {self.verdicts.distrust}."]
        try:
            return self.verdicts.sentences(self.category)
        except SettingsError as error:
            return [f"Every part is REVIEW: {error}."]

    @property
    def bound(self) -> str:
        """The share of good parts that will be set aside or rejected at most, in short."""
        found = self.thresholds
        return per_cent(found["promised_review"], up=True) if found else "no bound"

    def scale(self, anomaly_map: np.ndarray) -> Scale:
        """Colours of a map: those of the good parts where there are some, else the map's own."""
        return Scale.of_good(self.verdicts, self.category) or Scale.of_map(anomaly_map)

    def with_budgets(self, **budgets: Any) -> Recipe:
        """The same with other budgets of good parts.

        Raises:
            SettingsError: a value that does not fit.
        """
        return replace(self, predictor=replace(self.predictor, verdicts=self.verdicts.with_budgets(**budgets)))

    def good_part(self, picture: Path, sha256: str, lot: str) -> tuple[GoodPart, Look]:
        """What a confirmed good part adds to those that the thresholds stand on.

        Raises:
            DataError: its picture cannot be read, or has no finite score.
        """
        pixels = read_image(picture, **self.decoding)
        found = next(self.predictor.inspect([self.predictor.view.frames(pixels)]))
        return GoodPart.seen(image_name(sha256), found.score, found.anomaly_map, lot or None, found.size), look(pixels)

    def with_good_parts(self, parts: Sequence[tuple[GoodPart, Look]]) -> Recipe:
        """The same with more good parts; those that it has already count once.

        Raises:
            RunError: its good parts were scored under other conditions, or a part is of two lots.
        """
        looks = GoodLooks.of(one for _, one in parts)
        good = self.verdicts.good.joined(self.category, [part for part, _ in parts], self.predictor.conditions, looks)
        return replace(self, predictor=replace(self.predictor, verdicts=replace(self.verdicts, good=good)))

    @property
    def budgets(self) -> dict[str, Any]:
        """The budgets of good parts, by name."""
        return self.verdicts.settings.model_dump()


def open_recipes(folders: Sequence[Path]) -> dict[str, Recipe]:
    """The recipes of some runs and bundles, by name: the folder's, and of a run of several categories theirs with it.

    Raises:
        RunError: a folder is neither a run nor a bundle.
        SettingsError: two of the same name.
    """
    recipes: dict[str, Recipe] = {}
    for folder in folders:
        for recipe in _of_folder(folder):
            if recipe.name in recipes:
                raise SettingsError(f"two recipes are called '{recipe.name}'; rename the folder {folder}")
            recipes[recipe.name] = recipe
    return recipes


def _of_folder(folder: Path) -> list[Recipe]:
    predictor = open_predictor(folder)
    name = folder.resolve().name
    names = predictor.verdicts.good.categories or [name]  # without good parts every verdict is REVIEW, by any name
    recipes = []
    for category in names:
        own_name = name if len(names) == 1 else f"{name}-{category}"
        budgets = predictor.verdicts.settings.model_dump()
        recipes.append(Recipe(own_name, folder, category, predictor, str(predictor.conditions["detector"]), budgets))
    return recipes
