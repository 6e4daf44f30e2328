"""Another model in a recipe's place while the station serves; no part is dropped.

A recipe is immutable and each part keeps the one under which it was accepted, so that parts on their way are finished
by the model of before. Models are chosen by name from one folder that the station was started with: no path comes from
a client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threecad.errors import SettingsError, ThreeCADError, did_you_mean
from threecad.station import chain
from threecad.station.feedback import with_recorded
from threecad.station.inspecting import Recipe, open_recipes
from threecad.station.line import Line
from threecad.station.store import Store


@dataclass(frozen=True, slots=True)
class Models:
    """Runs and bundles in a folder, each of which may take a recipe's place."""

    folder: Path | None = None  # none may without

    @property
    def names(self) -> list[str]:
        """Of those that are there now."""
        if self.folder is None or not self.folder.is_dir():
            return []
        records = ("run.json", "bundle.json")
        return sorted(one.name for one in self.folder.iterdir() if any((one / name).is_file() for name in records))

    def open(self, name: str, recipe: Recipe) -> Recipe:
        """The recipe with the model of this name.

        Raises:
            SettingsError: none of this name, or of several categories and none is the recipe's.
            RunError, BundleError: it is damaged, or cannot run here.
        """
        if self.folder is None or name not in self.names:
            raise SettingsError(f"there is no model '{name}' in the folder --models{did_you_mean(name, self.names)}")
        found = list(open_recipes([self.folder / name]).values())
        fitting = [one for one in found if one.category == recipe.category] or found
        if len(fitting) > 1:
            learnt = ", ".join(one.category for one in found)
            raise SettingsError(f"expected a model of {recipe.category}, but '{name}' has learnt {learnt}")
        return replace(fitting[0], name=recipe.name)


def change_model(line: Line, models: Models, name: str, model: str, who: str) -> Recipe:
    """The recipe, which from now on inspects with another model; recorded.

    Raises:
        SettingsError, RunError, BundleError: as of `Models.open`.
        DataError: it cannot look at a picture; the model of before stays.
    """
    before = line.recipes[name]
    after = as_left(models.open(model, before), line.store)
    height, width = after.predictor.image_size
    after.predictor.network(np.zeros((1, height, width, 3), np.uint8))  # the first look takes longest; no part waits
    note_model(line.store, after, {"chosen": model, "started_with": _started_with(line.store, before), "who": who})
    line.recipes[name] = after
    return after


def as_left(recipe: Recipe, records: Store) -> Recipe:
    """The recipe with the good parts and budgets that the engineer gave this model; its folder's budgets if newer."""

    def of_this_model(kind: str) -> list[chain.Row]:
        asked = {"recipe": recipe.name, "model": recipe.model}
        return [row for row in records.notes(kind) if asked.items() <= row.content.items()]

    for row in of_this_model("calibration"):
        recipe = with_recorded(recipe, row)
    changes = of_this_model("thresholds")
    if changes and changes[-1].content["budgets_of_run"] == recipe.budgets_of_run:
        return recipe.with_budgets(**changes[-1].content["budgets"])
    return recipe


def as_started(recipe: Recipe, records: Store, models: Models, notify: Callable[[str], None]) -> Recipe:
    """The recipe as its engineer left it: with the model put in its place, unless it now starts with another."""
    last = _last_note(records, recipe.name)
    chosen = last.content.get("chosen") if last else None
    if last and chosen and last.content["started_with"] == recipe.model:
        try:
            other = models.open(chosen, recipe)
            if other.model == last.content["model"]:
                return as_left(other, records)
            why = "it has changed since"
        except ThreeCADError as error:
            why = str(error)
        notify(f"{recipe.name} inspects with {recipe.folder} and not with '{chosen}', as it was left: {why}")
    recipe = as_left(recipe, records)
    if last is None or last.content["model"] != recipe.model:
        note_model(records, recipe, {})
    return recipe


def note_model(records: Store, recipe: Recipe, more: dict[str, str]) -> None:
    """Record which model inspects from now on."""
    said = {"recipe": recipe.name, "model": recipe.model, "method": recipe.predictor.method}
    records.note("model", {**said, "thresholds": recipe.thresholds, **more})


def _started_with(records: Store, recipe: Recipe) -> str:
    """The model that the command line named."""
    last = _last_note(records, recipe.name)
    return str(last.content.get("started_with", last.content["model"])) if last else recipe.model


def _last_note(records: Store, name: str) -> chain.Row | None:
    return next((row for row in reversed(records.notes("model")) if row.content["recipe"] == name), None)
