"""A station under test: a small real network, pictures of plates, and a client on this machine."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from conftest import plate, scratch
from threecad.predictor import Predictor
from threecad.station.inspecting import Recipe
from threecad.station.line import Limits, Line
from threecad.station.models import Models, as_left
from threecad.station.safety import Guard, guard_for
from threecad.station.service import make_app
from threecad.station.store import Store
from threecad.verdicts import GoodPart, GoodScores, Verdicts


class Darkness:
    """A network whose map is how dark a pixel is, and whose score is its maximum."""

    image_size, precision = (48, 64), "float32"

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.may_go.wait(20)
        maps = 1 - pixels.astype(np.float32).mean(axis=3) / 255
        return maps, maps.max(axis=(1, 2))


def picture(seed: int, defect: bool = False, light: float = 1.0) -> bytes:
    pixels = np.clip(plate(seed) * light, 0, 255).astype(np.uint8)
    if defect:
        pixels = np.where(scratch(seed)[..., None] > 0, np.uint8(5), pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def recipe(network: Darkness | None = None, name: str = "plate") -> Recipe:
    network = network or Darkness()
    maps, scores = network(np.stack([plate(seed) for seed in range(1000, 1060)]))
    parts = (GoodPart.seen(str(k), float(score), one) for k, (score, one) in enumerate(zip(scores, maps, strict=True)))
    predictor = Predictor(network, "darkness", Verdicts(GoodScores(parts={"plate": tuple(parts)})))
    return Recipe(name, Path(name), "plate", predictor, "0" * 64, predictor.verdicts.settings.model_dump())


class Station:
    """A service under test, its line, and a client on this machine."""

    def __init__(
        self, folder: Path, limits: Limits | None = None, guard: Guard | None = None, models: Models | None = None
    ) -> None:
        self.network = Darkness()
        self.folder = folder
        self.store = Store(folder)
        self.left = self.store.settle_unfinished()
        self.line = Line(
            self.store, {"plate": as_left(recipe(self.network), self.store)}, limits or Limits(deadline_s=20)
        )
        self.client = TestClient(
            make_app(self.line, guard or guard_for("127.0.0.1"), models), base_url="http://127.0.0.1"
        )

    def post(self, content: bytes, **asked: Any) -> Any:
        return self.client.post("/v1/inspect", params=asked, content=content)

    def close(self) -> None:
        self.network.may_go.set()
        self.line.close()
        self.store.close()


def answering(station: Station) -> AbstractContextManager[str]:
    """The address at which a station answers real requests for as long as the block lasts."""
    return serving(station.line, Guard())


@contextmanager
def serving(line: Line, guard: Guard, models: Models | None = None) -> Iterator[str]:
    """The address at which a line is served over real requests for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(line, guard, models), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
