"""What a station is loaded with: many records, parts without a pause, and requests that something is wrong with."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from station_service import Service, drawn
from threecad.station import chain
from threecad.station.store import LOOKED_UP, Outcome, Store, Ticket, connect, now


def fill(folder: Path, recipe: str, count: int) -> None:
    """A store of as many parts, as a station would have written them, without waiting for the disk."""
    Store(folder).close()
    rng = random.Random(0)
    with closing(connect(folder)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        for number in range(1, count + 1):
            word = rng.choices(("OK", "REVIEW", "NG"), (95, 3, 2))[0]
            ticket = Ticket(number, now(), f"P{number}", recipe, f"L{number // 500}", False, f"{number:064x}")
            outcome = Outcome(word, "", rng.random(), rng.random(), duration_ms=20.0, brightness=100 + rng.random())
            content = {**ticket._asdict(), **asdict(outcome)}
            row = chain.append(database, ticket.at, "result", number, content)
            names = (*Ticket._fields, "seq", *LOOKED_UP)
            values = [row.seq if name == "seq" else content[name] for name in names]
            database.execute(
                f"INSERT INTO parts ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                values,
            )
            if word != "OK" and rng.random() < 0.8:
                said = {"answer": "good", "defect": "", "who": "operator"}
                chain.append(database, ticket.at, "answer", number, said)
                database.execute("UPDATE parts SET answer = 'good', defect = '' WHERE id = ?", (number,))
        database.execute("COMMIT")


def sustainable_rate(service: Service, seconds: float) -> float:
    """Parts a second that two clients get inspected, each of which waits for its answer."""
    done, deadline = Counter[int](), time.monotonic() + seconds

    def work(worker: int) -> None:
        while time.monotonic() < deadline:
            service.inspect(drawn(done[worker] % 40), "rate")
            done[worker] += 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    return done.total() / seconds


def malformed(rng: random.Random) -> bytes:
    """A request that one thing, or now and then a second one, is wrong with."""
    wrong = {
        "method": (b"PUT", b"\xff", b"GET GET"),
        "path": (b"/v1/parts/x/map", b"/v1/parts?limit=-1", b"/v1/parts?before=1e9", b"/%ff%00", b"/../..", b"*"),
        "version": (b"HTTP/9", b""),
        "host": (b"Host: elsewhere", b"Host:", b"no header"),
        "kind": (
            b"Content-Type: application/json",
            b"Content-Type: multipart/form-data; boundary=x",
            b"X: " + b"y" * 9000,
        ),
        "length": (b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: x", b"Transfer-Encoding: chunked"),
        "body": (
            b"",
            b"{",
            b"[" * 3000,
            b"\x89PNG\r\n\x1a\n",
            drawn(0)[:900],
            b'{"answer": "\\ud800"}',
            rng.randbytes(300),
        ),
    }
    targets = b"/v1/inspect /v1/inspect?recipe=none /v1/parts/1/answer /v1/recipes/cover/thresholds /login".split()
    said = {"method": b"POST", "path": rng.choice(targets), "version": b"HTTP/1.1", "host": b"Host: 127.0.0.1"}
    said |= {"kind": b"Content-Type: image/png", "body": rng.choice(wrong["body"])}
    said |= {name: rng.choice(wrong[name]) for name in rng.sample(sorted(wrong), rng.choice((1, 1, 1, 2)))}
    length = said.get("length", b"Content-Length: %d" % len(said["body"]))
    start = b" ".join((said["method"], said["path"], said["version"]))
    return b"\r\n".join((start, said["host"], said["kind"], length, b"Connection: close", b"", said["body"]))
