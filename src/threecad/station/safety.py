"""Who may ask a station, and how much at once.

On this machine alone nobody is asked for a token unless one is set. On any other address two are required: the
operator's answers parts, the engineer's changes thresholds too.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threecad.errors import SettingsError

if TYPE_CHECKING:
    from threecad.station.line import Line

OPERATOR_TOKEN, ENGINEER_TOKEN = "THREECAD_OPERATOR_TOKEN", "THREECAD_ENGINEER_TOKEN"
LEAST_TOKEN = 16  # characters
COOKIE = "station"
MOST_SESSIONS = 1000

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": why}
    for status, why in {
        400: "this is no request",
        401: "a token is required",
        403: "only the engineer may do this, or a page of another site asked",
        404: "there is no such part or recipe",
        408: "the picture did not arrive in time",
        409: "it does not fit what is there",
        413: "too many bytes",
        421: "this station is called by another name",
        422: "the request does not say what it should",
        429: "all places are taken; try again",
        503: "the store cannot be written",
    }.items()
}
"""What any request may be answered, for the schema."""


class Role(IntEnum):
    """What somebody may do; each may do what those before may."""

    OPERATOR = 1
    ENGINEER = 2


@dataclass
class Guard:
    """The tokens of a station, and who has shown one."""

    tokens: dict[Role, str] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()  # names by which the station may be called; any where empty
    sessions: dict[str, Role] = field(default_factory=dict)

    def role_of_token(self, token: str) -> Role | None:
        """The role that a token gives."""
        given = token.encode()
        found = [role for role, known in self.tokens.items() if hmac.compare_digest(known.encode(), given)]
        return max(found, default=None)

    def role(self, request: Request) -> Role | None:
        """The role of whoever asks; None for a stranger."""
        if not self.tokens:
            return Role.ENGINEER
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.role_of_token(token)
        return self.sessions.get(request.cookies.get(COOKIE, ""))

    def open_session(self, role: Role) -> str:
        """The value of a new cookie."""
        while len(self.sessions) >= MOST_SESSIONS:
            self.sessions.pop(next(iter(self.sessions)))
        value = secrets.token_urlsafe(32)
        self.sessions[value] = role
        return value

    def require(self, request: Request, least: Role) -> Role:
        """The role of whoever asks, where it is enough.

        Raises:
            HTTPException: 401 for a stranger, 403 for an operator who asks for what the engineer does.
        """
        role = self.role(request)
        if role is None:
            raise HTTPException(401, "a token is required", {"WWW-Authenticate": "Bearer"})
        if role < least:
            raise HTTPException(403, "only the engineer may do this")
        return role


def line_for(request: Request, least: Role) -> Line:
    """The line, for somebody who may do as much.

    Raises:
        HTTPException: as of `Guard.require`.
    """
    request.app.state.guard.require(request, least)
    line: Line = request.app.state.line
    return line


def who(request: Request) -> str:
    """The role of whoever asks, for the record."""
    return str(request.app.state.guard.role(request).name.lower())


def guard_for(host: str) -> Guard:
    """The guard of a station on this address; tokens come from the environment.

    Raises:
        SettingsError: another address than this machine's own without tokens, or tokens that are too short or alike.
    """
    named = {Role.OPERATOR: OPERATOR_TOKEN, Role.ENGINEER: ENGINEER_TOKEN}
    tokens = {role: os.environ[name] for role, name in named.items() if os.environ.get(name)}
    if tokens and len(tokens) < len(named):
        raise SettingsError(f"set both {OPERATOR_TOKEN} and {ENGINEER_TOKEN}, or neither")
    if any(len(token) < LEAST_TOKEN for token in tokens.values()):
        raise SettingsError(f"a token has at least {LEAST_TOKEN} characters; `openssl rand -hex 24` makes one")
    if len(set(tokens.values())) < len(tokens):
        raise SettingsError(f"{OPERATOR_TOKEN} and {ENGINEER_TOKEN} are the same; set two different ones")
    if is_loopback(host):
        return Guard(tokens, frozenset({"127.0.0.1", "localhost", "[::1]", host}))
    if not tokens:
        raise SettingsError(
            f"{host} can be reached from other machines: set {OPERATOR_TOKEN} and {ENGINEER_TOKEN},\n"
            "or serve on 127.0.0.1"
        )
    return Guard(tokens)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """Around the service: refuses foreign pages and large bodies, and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, guard: Guard, max_bytes: int) -> None:
        self.app, self.guard, self.max_bytes = app, guard, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal:
            return await _answer(with_headers, *refusal)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise HTTPException(413, f"expected at most {self.max_bytes} bytes")
            return message

        return await self.app(scope, counted, with_headers)

    def _refusal(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host = headers.get(b"host", "")
        if self.guard.hosts and host.rsplit(":", 1)[0] not in self.guard.hosts and host not in self.guard.hosts:
            return 421, "this station is called by another name"  # a foreign name that was pointed at this machine
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "asked by a page of another site"
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return 413, f"expected at most {self.max_bytes} bytes"
        return None


async def _answer(send: Any, status: int, detail: str) -> None:
    body = f'{{"detail": "{detail}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
