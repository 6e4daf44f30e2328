"""A station in a process of its own, as a line's PC runs it, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Answered(NamedTuple):
    """An answer of a station."""

    status: int
    said: dict[str, Any]  # empty where it is no JSON
    ms: float


class Service:
    """`threecad serve` of a bundle; ends when the block does."""

    def __init__(self, bundle: Path, store: Path, disk: str = "", is_expected_to_start: bool = True) -> None:
        """Start it.

        Args:
            disk: mount options of a disk of its own that holds the store, as of tmpfs; no other process sees it.
        """
        self.store = store
        command = [sys.executable, "-m", "threecad", "serve", str(bundle), "--port", "0", "--store", str(store)]
        if disk:
            store.mkdir(parents=True, exist_ok=True)
            mounted = f'mount -t tmpfs -o {disk} station "{store}" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mounted, "sh", *command]
        self._log = Path(f"{store}.log")  # not a pipe: nobody would read it while the station writes
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        if is_expected_to_start:
            assert self.process.stdout is not None
            address = self.process.stdout.readline().strip()
            assert address, self._log.read_text()
            self.port = int(address.rstrip("/").rpartition(":")[2])

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def ended(self) -> tuple[int, str]:
        """Exit code of a station that could not start, and the last line it wrote."""
        self.process.communicate(timeout=120)
        return self.process.returncode, " ".join(self._log.read_text().strip().splitlines()[-2:])

    def inspect(self, content: bytes, part: str) -> Answered:
        """The answer to a picture."""
        return self._ask("POST", f"/v1/inspect?part={part.replace(' ', '%20')}", content)

    def get(self, path: str) -> Answered:
        """The answer to a look at a page."""
        return self._ask("GET", path)

    def raw(self, request: bytes) -> str:
        """The status of the answer to these bytes, or `closed`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                start = connection.recv(4096).decode("latin-1")
            except ConnectionError:
                return "closed"
        return start.split(" ")[1] if start.startswith("HTTP/") else "closed"

    def within(self, script: str) -> str:
        """What a shell script prints that is run in the store, where its disk is seen."""
        enter = ["nsenter", "--target", str(self.process.pid), "--mount"]
        command = [*enter, "sh", "-c", f'cd "{self.store}" && {script}']
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    @property
    def memory_mb(self) -> float:
        """Resident memory of the station."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Answered:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:  # it ended in the middle of an answer
            raise OSError(str(error)) from None
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        said = json.loads(content) if is_json else {}
        return Answered(answer.status, said if isinstance(said, dict) else {}, 1000 * (time.perf_counter() - began))


@cache
def drawn(index: int) -> bytes:
    """The PNG of a drawn part."""
    from threecad.demo.parts import render_part
    from threecad.records import GOOD, Split

    buffer = io.BytesIO()
    Image.fromarray(render_part(1, Split.TEST, GOOD, index, 96).image.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
