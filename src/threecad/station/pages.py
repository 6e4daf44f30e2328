"""The pages of a station: review, health, records, and the door."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from threecad.station import health
from threecad.station.drift import ADVICE, ALPHA, Watch
from threecad.station.inspecting import Recipe
from threecad.station.line import Line
from threecad.station.retention import GIGABYTE, Retention
from threecad.station.safety import COOKIE, Role
from threecad.verdicts import per_cent

STATIC = {"station.css": "text/css", "review.js": "text/javascript", "health.js": "text/javascript"}
WIDTH, HEIGHT = 600, 150  # of charts, in units of their own
STRIP = 24  # parts
LEAST_FREE = 2 * GIGABYTE  # bytes of the disk, below which it is time to make room

# The latest lots, from one to the next along their index: however many parts there are, a look for each lot.
_LOTS = """
WITH RECURSIVE lots (lot) AS (
    SELECT min(lot) FROM parts WHERE lot > ''
    UNION ALL
    SELECT (SELECT min(lot) FROM parts WHERE lot > lots.lot) FROM lots WHERE lot IS NOT NULL
)
SELECT lot, (SELECT max(id) FROM parts WHERE parts.lot = lots.lot) FROM lots WHERE lot IS NOT NULL
ORDER BY 2 DESC LIMIT 100
"""

router = APIRouter(include_in_schema=False)


def add_pages(app: FastAPI) -> None:
    """Put the pages before a service."""
    app.include_router(router)


@router.get("/")
def review(request: Request) -> Response:
    """The parts that need eyes."""
    line: Line = request.app.state.line
    kinds = line.store.read("SELECT DISTINCT defect FROM parts WHERE defect != '' ORDER BY 1 LIMIT 50")
    lots = line.store.read(_LOTS)
    return _page(request, "review.html", kinds=[kind for (kind,) in kinds], lots=[lot for lot, _ in lots])


@router.get("/health")
def line_health(request: Request, recipe: str = "") -> Response:
    """How the line does under one recipe."""
    line: Line = request.app.state.line
    chosen = line.recipes.get(recipe) or next(iter(line.recipes.values()))
    watch: Watch = request.app.state.watches.update(chosen.name)
    hours = health.hours(line, chosen.name)
    counts = {word: sum(hour.counts[word] for hour in hours) for word in health.WORDS}
    latest = "FROM parts INDEXED BY parts_recipe WHERE recipe = ? AND seq IS NOT NULL ORDER BY id DESC LIMIT ?"
    strip = line.store.read(f"SELECT id, verdict {latest}", (chosen.name, STRIP))
    return _page(
        request,
        "health.html",
        chosen=chosen,
        recipes=list(line.recipes),
        counts=counts,
        shares=_shares(chosen, counts) if sum(counts.values()) else [],
        latency=health.latency(line, chosen.name),
        hours=hours,
        most=max(1, *(hour.total for hour in hours)),
        strip=strip[::-1],
        alarms=list(watch.alarms.values()),
        alpha=per_cent(ALPHA),
        charts=_charts(watch, chosen),
        size=(WIDTH, HEIGHT),
        choices=request.app.state.models.names,
        kept=_kept(request.app.state.retention),
    )


@router.get("/records")
def records(request: Request) -> Response:
    """The last rows of the chain, and how thresholds have changed."""
    line: Line = request.app.state.line
    rows = line.store.read("SELECT seq, at, kind, part, body, hash FROM chain ORDER BY seq DESC LIMIT 100")
    history = {kind: [(row, row.content) for row in line.store.notes(kind)[::-1]] for kind in ("thresholds", "model")}
    return _page(request, "records.html", rows=rows, changes=history["thresholds"], models=history["model"])


@router.get("/login")
def door(request: Request) -> Response:
    """Where a token is shown."""
    return HTMLResponse(_template("login.html").render(failed=False, role=None))


@router.post("/login")
async def enter(request: Request) -> Response:
    """Let somebody in who has a token."""
    async with request.form(max_files=0, max_fields=1) as form:
        role = request.app.state.guard.role_of_token(str(form.get("token", "")))
    if role is None:
        return HTMLResponse(_template("login.html").render(failed=True, role=None), 401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(COOKIE, request.app.state.guard.open_session(role), httponly=True, samesite="strict")
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    """One of our few files."""
    if name not in STATIC:
        raise HTTPException(404, "no such file")
    return Response(_file(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


def _page(request: Request, template: str, **values: Any) -> Response:
    """A page for whoever may see it; the door for a stranger."""
    role = request.app.state.guard.role(request)
    if role is None:
        return RedirectResponse("/login", 303)
    return HTMLResponse(_template(template).render(role=role.name.lower(), is_engineer=role >= Role.ENGINEER, **values))


def _shares(recipe: Recipe, counts: dict[str, int]) -> list[dict[str, Any]]:
    """For NG, and for REVIEW or NG: the share, its interval, the bound, and whether it is beyond."""
    found = recipe.thresholds
    promised = {"NG": found.get("promised_reject"), "REVIEW or NG": found.get("promised_review")}
    rows = []
    for name, share in health.share_rejected(counts).items():
        bound = promised[name]
        rows.append(
            {
                "name": name,
                "share": per_cent(share.value),
                "interval": f"{per_cent(share.low)} to {per_cent(share.high, up=True)}",
                "bound": per_cent(bound, up=True) if bound is not None else "none",
                "is_beyond": bound is not None and share.low > bound,
            }
        )
    return rows


def _kept(retention: Retention) -> dict[str, Any]:
    """What lies on the disk, which rule holds, and what is to be done."""
    disk, alarms = retention.disk, []
    if disk.free < LEAST_FREE:
        alarms.append(f"The disk has {_gigabytes(disk.free)} left; nothing is accepted once it is full. Make room.")
    if retention.is_over:
        alarms.append(f"Pictures take {_gigabytes(disk.used)}, all of parts that wait for a person. Answer them.")
    used, free = _gigabytes(disk.used), _gigabytes(disk.free)
    return {"used": used, "free": free, "rule": retention.keep.in_words, "removed": retention.removed, "alarms": alarms}


def _gigabytes(count: int) -> str:
    return f"{count / GIGABYTE:.3g} GB" if count >= GIGABYTE / 100 else f"{count / 10**6:.3g} MB"


def _charts(watch: Watch, recipe: Recipe) -> list[dict[str, Any]]:
    """For each number that is watched, its dots and the line of its stakes."""
    points = list(watch.points)
    charts = []
    for place, what in enumerate(ADVICE):
        values, logs = [point.values[place] for point in points], [point.logs[place] for point in points]
        least, top = min([-2.0, *logs]), 1.2 * max([watch.limit, *logs])
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if what == "score" and recipe.thresholds:
            high = max(high, recipe.thresholds["review"])
        band = recipe.good_spread(what)
        if band and values:
            low, high = min(low, band[0]), max(high, band[1])
        charts.append(
            {
                "what": what,
                "unit": " %" if what.startswith("position") else "",
                "band": [y for _, y in _places(band, low, high)] if values else [],
                "dots": _places(values, low, high),
                "low": f"{low:.3g}",
                "high": f"{high:.3g}",
                "line": " ".join(f"{x:.1f},{y:.1f}" for x, y in _places(logs, least, top)),
                "limit": _places([watch.limit], least, top)[0][1],
                "stake": f"{10 ** min(logs[-1], 12):,.3g}" if logs else "1",
                "needed": f"{10**watch.limit:,.0f}",
                "is_alarmed": what in watch.alarms,
            }
        )
    return charts


def _places(values: Sequence[float], low: float, high: float) -> list[tuple[float, float]]:
    """Where values lie on a chart, x and y."""
    spread = high - low if high > low and math.isfinite(high - low) else 1.0
    step = WIDTH / max(1, len(values) - 1)
    return [(index * step, HEIGHT * (1 - (value - low) / spread)) for index, value in enumerate(values)]


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("threecad.station"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


@cache
def _file(name: str) -> bytes:
    return (resources.files("threecad.station") / "static" / name).read_bytes()
