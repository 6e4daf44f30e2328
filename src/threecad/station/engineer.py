"""What the engineer changes over HTTP, each with a record: thresholds, good parts that count, the model, the watch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from threecad.station.feedback import calibrated, confirmed_good, looked_at
from threecad.station.inspecting import Recipe
from threecad.station.line import Line
from threecad.station.models import change_model
from threecad.station.safety import REFUSALS, Role, line_for, who
from threecad.station.uploads import PRINTABLE

router = APIRouter(responses=REFUSALS)


Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Budgets(BaseModel):
    """Shares of good parts that may be set aside and rejected; what is left out stays."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    review_at: Share | None = None
    reject_at: Share | None = None
    region_at: Share | None = None
    confidence: Share | None = None
    least_area_px: int | None = Field(default=None, ge=1, lt=2**31)


class Chosen(BaseModel):
    """A model, by the name of its folder."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=200, pattern=PRINTABLE)


@router.get("/v1/recipes/{name}/thresholds")
def thresholds(request: Request, name: str) -> dict[str, Any]:
    """Budgets and thresholds of a recipe, the promises in words, and how they came about."""
    line = line_for(request, Role.OPERATOR)
    recipe = recipe_named(line, name)
    history = [{"at": row.at, **row.content} for row in line.store.notes("thresholds") if row.content["recipe"] == name]
    said = {"budgets": recipe.budgets, "thresholds": recipe.thresholds, "promises": recipe.promises}
    return {"recipe": name, "model": recipe.model, **said, "history": history}


@router.post("/v1/recipes/{name}/thresholds")
def change_thresholds(request: Request, name: str, budgets: Budgets) -> dict[str, Any]:
    """Change the budgets of a recipe, which moves its thresholds; only the engineer, and with a record."""
    line = line_for(request, Role.ENGINEER)
    with line.changing:
        before = recipe_named(line, name)
        after = before.with_budgets(**budgets.model_dump())
        line.store.note(
            "thresholds",
            {
                "recipe": name,
                "model": before.model,
                "budgets": after.budgets,
                "budgets_of_run": before.budgets_of_run,
                "before": before.thresholds,
                "after": after.thresholds,
                "who": who(request),
            },
        )
        line.recipes[name] = after
    return thresholds(request, name)


@router.get("/v1/recipes/{name}/model")
def models_of(request: Request, name: str) -> dict[str, Any]:
    """The model of a recipe, those that may take its place, and which it has had."""
    line = line_for(request, Role.OPERATOR)
    recipe = recipe_named(line, name)
    history = [{"at": row.at, **row.content} for row in line.store.notes("model") if row.content["recipe"] == name]
    return {"recipe": name, "model": recipe.model, "choices": request.app.state.models.names, "history": history}


@router.post("/v1/recipes/{name}/model")
def put_model(request: Request, name: str, chosen: Chosen) -> dict[str, Any]:
    """Put another model in its place; parts on their way are finished by the one before; with a record."""
    line = line_for(request, Role.ENGINEER)
    with line.changing:
        recipe_named(line, name)
        change_model(line, request.app.state.models, name, chosen.model, who(request))
    return models_of(request, name)


@router.get("/v1/recipes/{name}/calibration")
def try_calibration(request: Request, name: str) -> dict[str, Any]:
    """What the confirmed good parts would make of the thresholds; nothing changes."""
    line = line_for(request, Role.ENGINEER)
    before = recipe_named(line, name)
    parts = looked_at(line, before, confirmed_good(line.store, before))
    after = before.with_good_parts(parts)
    thresholds = {"before": before.thresholds, "after": after.thresholds}
    return {"recipe": name, "parts": len(parts), **thresholds, "promises": after.promises}


@router.post("/v1/recipes/{name}/calibration")
def calibrate(request: Request, name: str) -> dict[str, Any]:
    """Let the confirmed good parts count; only the engineer, and with a record."""
    line = line_for(request, Role.ENGINEER)
    with line.changing:
        line.recipes[name] = calibrated(line, recipe_named(line, name), who(request))
    return thresholds(request, name)


@router.post("/v1/recipes/{name}/watch")
def restart_watch(request: Request, name: str) -> dict[str, Any]:
    """Begin the watch for drift anew, after what raised an alarm is mended; only the engineer, and with a record."""
    line = line_for(request, Role.ENGINEER)
    recipe_named(line, name)
    request.app.state.watches.restart(name, who(request))
    return {"recipe": name, "alarms": []}


def recipe_named(line: Line, name: str) -> Recipe:
    """The recipe of this name; 404 without."""
    if name not in line.recipes:
        raise HTTPException(404, f"there is no recipe of this name; known: {', '.join(line.recipes)}")
    return line.recipes[name]
