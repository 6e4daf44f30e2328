"""`--webhook URL`: every record is posted as JSON, in order, signed, and tried again until it is taken.

    X-Station-Signature: sha256=HEX    HMAC-SHA-256 of the body under THREECAD_WEBHOOK_SECRET
    X-Station-Record: HASH             of the row in the chain

Which record was taken last is kept in STORE/webhook.json. A station that is killed between the receiver's answer and
that note posts the record once more: the receiver tells by its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from threecad.errors import SettingsError
from threecad.files import read_json, write_json
from threecad.station import chain
from threecad.station.answers import answer_of
from threecad.station.line import Line

SECRET = "THREECAD_WEBHOOK_SECRET"
TIMEOUT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
IDLE_S = 0.5
AT_ONCE = 50  # records between two looks whether to stop


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its body: it counts as refused."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Webhook:
    """A receiver of records."""

    def __init__(self, line: Line, url: str) -> None:
        """Begin with the first record that the receiver has not taken.

        Raises:
            SettingsError: the URL is not one of HTTP, or there is no secret to sign with.
        """
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise SettingsError(f"expected a URL that begins with http:// or https://, found '{url}'")
        secret = os.environ.get(SECRET, "")
        if not secret:
            raise SettingsError(f"set {SECRET}, under which records are signed; `openssl rand -hex 24` makes one")
        self.line, self.url, self._secret = line, url, secret.encode()
        self._file = line.store.folder / "webhook.json"
        before = read_json(self._file) if self._file.exists() else {}
        self.taken = int(before.get("taken", 0)) if before.get("url") == url else 0
        self.wait_s = FIRST_WAIT_S
        # Proxies of the environment are not asked: a station talks to the receiver that was named and to nobody else.
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))

    def step(self) -> float:
        """Post records that are waiting; the seconds until the next try.

        Raises:
            FileError: what was taken cannot be noted.
        """
        query = "SELECT * FROM chain WHERE kind = 'result' AND seq > ? ORDER BY seq LIMIT ?"
        for values in self.line.store.read(query, (self.taken, AT_ONCE)):
            row = chain.Row(*values)
            if not self._is_taken(row):
                wait_s, self.wait_s = self.wait_s, min(2 * self.wait_s, LONGEST_WAIT_S)
                return wait_s
            self.taken, self.wait_s = row.seq, FIRST_WAIT_S
            write_json(self._file, {"url": self.url, "taken": row.seq})
        return IDLE_S

    def _is_taken(self, row: chain.Row) -> bool:
        """Whether the receiver answered 2xx."""
        body = json.dumps(answer_of(row), ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "X-Station-Signature": f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}",
            "X-Station-Record": row.hash,
        }
        try:
            request = urllib.request.Request(self.url, body, headers, method="POST")
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return bool(200 <= answer.status < 300)
        except (OSError, http.client.HTTPException):  # HTTP errors and time-outs among them
            return False
