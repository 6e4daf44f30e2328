"""What is asked of a station over HTTP.

Fields have the names of OPC 40100-1 (machine vision) where it has some: partId, recipeId, jobId (the lot), resultId,
creationTime, processingTimes, isSimulated. Health and models are asked as in KServe's protocol, version 2.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from threecad.errors import DataError, FileError, SettingsError, ThreeCADError
from threecad.overlay import Scale
from threecad.station import chain
from threecad.station.answers import answer_of
from threecad.station.drift import Watches
from threecad.station.engineer import recipe_named
from threecad.station.engineer import router as engineer
from threecad.station.health import metrics
from threecad.station.line import BusyError, Line
from threecad.station.models import Models
from threecad.station.retention import Keep, Retention
from threecad.station.safety import REFUSALS, Gate, Guard, Role, line_for, who
from threecad.station.uploads import FORM_BYTES, PRINTABLE, REQUEST_BODY, Asked, received

PICTURES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}, "image/png": {}}}}

RETRY_S = 1
"""Seconds after which to try again when all places are taken."""

Text = Annotated[str, Query(max_length=200, pattern=PRINTABLE)]
Number = Annotated[int, Path(ge=1, lt=2**63)]

api = APIRouter(responses=REFUSALS)


class GivenAnswer(BaseModel):
    """What a person says of a part."""

    model_config = ConfigDict(extra="forbid")

    answer: Literal["good", "defect", "skip"]
    defect: str = Field(default="", max_length=60, pattern=PRINTABLE)


def make_app(line: Line, guard: Guard, models: Models | None = None, retention: Retention | None = None) -> FastAPI:
    """The service over a line, with its pages."""
    from threecad.station.pages import add_pages

    version = importlib.metadata.version("threecad")
    app = FastAPI(title="ThreeCAD station", version=version, docs_url=None, redoc_url=None)
    app.state.line, app.state.guard, app.state.watches = line, guard, Watches(line)
    app.state.models, app.state.retention = models or Models(), retention or Retention(line, Keep())
    for name in line.recipes:
        app.state.watches.update(name)
    line.on_record = lambda row: app.state.watches.update(row.content["recipe"])
    app.include_router(api)
    app.include_router(engineer)
    add_pages(app)
    for error, status in ((DataError, 422), (SettingsError, 422), (FileError, 503), (ThreeCADError, 409)):
        app.add_exception_handler(error, _told(status))
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_middleware(Gate, guard=guard, max_bytes=line.limits.max_bytes + FORM_BYTES)
    return app


def _told(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        folder = str(request.app.state.line.store.folder)  # where files lie is nothing for a client
        return JSONResponse({"detail": str(error).replace(folder, "the store")}, status)

    return handler


async def _not_understood(request: Request, error: Exception) -> Response:
    """Which field does not fit, and why; what was sent is not repeated, it may be anything."""
    first = error.errors()[0]  # type: ignore[attr-defined]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}".encode(errors="replace").decode()}, 422)


@api.post("/v1/inspect", openapi_extra={"requestBody": REQUEST_BODY})
async def inspect(
    request: Request, part: Text = "", recipe: Text = "", lot: Text = "", simulated: bool = False
) -> JSONResponse:
    """The verdict on a part, from the bytes of its picture, raw or as the field `image` of a form."""
    line = line_for(request, Role.OPERATOR)
    asked = Asked(part=part, recipe=recipe, lot=lot, simulated=simulated)
    try:
        with line.place():
            content, asked = await received(request, asked)
            row = await run_in_threadpool(line.inspect, content, **asked.model_dump())
    except BusyError:
        raise HTTPException(429, "all places are taken; try again", {"Retry-After": str(RETRY_S)}) from None
    return JSONResponse(answer_of(row))


@api.get("/v1/parts")
def parts(
    request: Request,
    queue: bool = False,
    answer: Literal["", "good", "defect", "skip"] = "",
    verdict: Literal["", "OK", "REVIEW", "NG"] = "",
    lot: Text = "",
    recipe: Text = "",
    defect: Text = "",
    since: Annotated[str, Query(max_length=24, pattern=r"^[0-9T:.Z-]*$")] = "",
    before: Annotated[int, Query(ge=1, lt=2**63)] = 2**63 - 1,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[dict[str, Any]]:
    """Parts, the newest first: with `queue` those that need eyes and have no answer yet."""
    line = line_for(request, Role.OPERATOR)
    where, values = ["id < ?", "seq IS NOT NULL"], list[Any]([before])
    if queue:
        where.append("verdict IN ('NG', 'REVIEW') AND answer IS NULL")
    asked = {
        "verdict = ?": verdict,
        "lot = ?": lot,
        "recipe = ?": recipe,
        "defect = ?": defect,
        "at >= ?": since,
        "answer = ?": answer,
    }
    for condition, value in asked.items():
        if value:
            where.append(condition)
            values.append(value)  # type: ignore[arg-type]
    columns = ("id", "at", "part", "recipe", "lot", "verdict", "reason", "score", "answer", "defect")
    query = f"SELECT {', '.join(columns)} FROM parts WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
    return [dict(zip(columns, row, strict=True)) for row in line.store.read(query, (*values, limit))]


@api.get("/v1/parts/{number}")
def part(request: Request, number: Number) -> dict[str, Any]:
    """The record of a part, as `/v1/inspect` answered, and what a person said of it."""
    line = line_for(request, Role.OPERATOR)
    row = _record(line, number)
    given, defect = line.store.read("SELECT answer, defect FROM parts WHERE id = ?", (number,))[0]
    return {**answer_of(row), "answer": given, "defect": defect}


@api.get("/v1/parts/{number}/{kind}", response_class=Response, responses=PICTURES)
def picture(request: Request, number: Number, kind: Literal["image", "map", "overlay", "golden"]) -> Response:
    """Its picture, the coloured map to lay over it, both in one, or the most similar part that passed."""
    line = line_for(request, Role.OPERATOR)
    said = _record(line, number).content
    decoding = line.recipes[said["recipe"]].decoding if said["recipe"] in line.recipes else {}
    try:
        if kind == "image":
            content = line.pictures.shown(said["picture"], decoding)
        elif kind == "golden":
            content = line.pictures.shown(said["golden"] or "none", decoding)
        elif not said["scale"]:
            raise DataError(f"part {number} has no map: it was not inspected")
        elif kind == "map":
            content = line.pictures.coloured_map(number, Scale(*said["scale"]))
        else:
            content = line.pictures.overlay(said["picture"], number, Scale(*said["scale"]), decoding)
    except DataError as error:
        raise HTTPException(404, str(error)) from None
    caching = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(content, media_type="image/png" if kind == "map" else "image/jpeg", headers=caching)


@api.post("/v1/parts/{number}/answer")
def answer(request: Request, number: Number, given: GivenAnswer) -> dict[str, Any]:
    """Keep what a person says of a part."""
    line = line_for(request, Role.OPERATOR)
    defect = given.defect if given.answer == "defect" else ""
    return {"seq": line.store.answer(number, given.answer, defect, who(request)).seq}


@api.post("/v1/parts/{number}/undo")
def undo(request: Request, number: Number) -> dict[str, Any]:
    """Take the last answer back; both stay in the record."""
    line = line_for(request, Role.OPERATOR)
    return {"seq": line.store.answer(number, None, "", who(request)).seq}


@api.get("/v2/health/live")
def live() -> dict[str, bool]:
    """Whether the service answers."""
    return {"live": True}


@api.get("/v2/health/ready")
def ready(request: Request) -> JSONResponse:
    """Whether parts can be inspected and recorded."""
    line: Line = request.app.state.line
    try:
        line.store.read("SELECT 1")
        is_ready = bool(line.recipes)
    except Exception:
        is_ready = False
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@api.get("/v2/models/{name}")
def model(request: Request, name: str) -> dict[str, Any]:
    """What a recipe is."""
    line = line_for(request, Role.OPERATOR)
    recipe = recipe_named(line, name)
    height, width = recipe.predictor.image_size
    return {
        "name": name,
        "versions": [recipe.model],
        "platform": f"threecad_{recipe.predictor.method}",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [1]}],
        "parameters": {"image_size": [height, width], "good_parts": len(recipe.good_scores)},
    }


@api.get("/metrics", response_class=PlainTextResponse)
def prometheus(request: Request) -> PlainTextResponse:
    """Counts and latencies in Prometheus' text format."""
    return PlainTextResponse(metrics(line_for(request, Role.OPERATOR)), media_type="text/plain; version=0.0.4")


def _record(line: Line, number: int) -> chain.Row:
    row = line.store.result(number)
    if row is None:
        raise HTTPException(404, f"there is no inspected part {number}")
    return row
