"""From a picture to one record: kept, accepted, queued, inspected, answered before its deadline.

    bytes → picture on disk → accepted → queue (bounded) → worker thread → record

Whoever hands in a picture waits for the answer. Past the deadline it is REVIEW with the reason "time", and what the
worker finds later is dropped, so that a part never has two records.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from threecad.errors import DataError, ThreeCADError
from threecad.station import chain
from threecad.station.inspecting import Recipe, Seen
from threecad.station.pictures import Pictures, without_path
from threecad.station.store import Outcome, Store, Ticket, now

PASSED_KEPT = 64
"""Parts that passed, of which the most similar one is shown beside a doubtful one."""


class BusyError(Exception):
    """All places of the queue are taken; try again a little later."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a station takes on."""

    places: int = 16  # parts that are inspected, wait, or are being sent
    deadline_s: float = 10.0  # from acceptance to the answer
    max_bytes: int = 64 * 2**20  # of one picture file
    max_pixels: int = 50_000_000


class Line:
    """The way of parts through a station. Safe to call from several threads."""

    def __init__(
        self,
        store: Store,
        recipes: Mapping[str, Recipe],
        limits: Limits | None = None,
        on_record: Callable[[chain.Row], None] = lambda row: None,
    ) -> None:
        self.store, self.recipes, self.limits = store, dict(recipes), limits or Limits()
        self.pictures = Pictures(store.folder)
        self.on_record = on_record
        self.refused = 0  # for want of a place
        self.changing = threading.Lock()  # held while a recipe is exchanged for one that was made from it
        self._places = threading.BoundedSemaphore(self.limits.places)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspect")
        self._passed: dict[str, deque[tuple[str, np.ndarray]]] = {}

    def close(self) -> None:
        """Finish what was accepted."""
        self._worker.shutdown(wait=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, for as long as the block lasts.

        Raises:
            BusyError: all are taken.
        """
        if not self._places.acquire(blocking=False):
            self.refused += 1
            raise BusyError
        try:
            yield
        finally:
            self._places.release()

    def recipe(self, name: str) -> Recipe:
        """The recipe of this name; the only one where none is named.

        Raises:
            DataError: there is none, or there are several to choose from.
        """
        if not name and len(self.recipes) == 1:
            return next(iter(self.recipes.values()))
        if name not in self.recipes:
            found = f"'{name}'" if name else "none named"
            raise DataError(f"expected one of the recipes {', '.join(self.recipes)}, found {found}")
        return self.recipes[name]

    def inspect(
        self, content: bytes, part: str = "", recipe: str = "", lot: str = "", simulated: bool = False
    ) -> chain.Row:
        """The record of a part, from the bytes of its picture; call it inside `place`.

        Raises:
            DataError: an unknown recipe, or bytes that are no picture; the part was not accepted.
            FileError: the store cannot be written; the part was not accepted.
        """
        start = time.monotonic()
        chosen = self.recipe(recipe)
        max_pixels = min(self.limits.max_pixels, chosen.decoding.get("max_pixels", self.limits.max_pixels))
        with self.pictures.keeping:
            picture = self.pictures.keep(content, max_pixels)
            ticket = self.store.accept(picture, part, chosen.name, lot, simulated)
        future = self._worker.submit(self._look, ticket, chosen)
        outcome = self._outcome(future, start)
        row = self.store.settle(ticket, outcome)
        self.on_record(row)
        return row

    def _outcome(self, future: Future[Outcome], start: float) -> Outcome:
        try:
            return future.result(timeout=max(0.0, start + self.limits.deadline_s - time.monotonic()))
        except OutOfTime:
            future.cancel()
            waited_ms = 1000 * (time.monotonic() - start)
            return Outcome("REVIEW", "time", start=now(), end=now(), duration_ms=round(waited_ms, 1))

    def _look(self, ticket: Ticket, recipe: Recipe) -> Outcome:
        """What the worker finds; whatever goes wrong is a REVIEW with its reason, never silence."""
        begun, start = now(), time.monotonic()

        def times() -> dict[str, Any]:
            return {"start": begun, "end": now(), "duration_ms": round(1000 * (time.monotonic() - start), 1)}

        path = self.pictures.path(ticket.picture)
        try:
            seen = recipe.inspect(path)
            self.pictures.keep_map(ticket.id, seen.result.anomaly_map)
        except ThreeCADError as error:
            return Outcome("REVIEW", f"not inspected: {without_path(error, path)}", model=recipe.model, **times())
        except Exception as error:  # a part must not vanish with a fault of ours
            return Outcome("REVIEW", f"not inspected: {type(error).__name__}", model=recipe.model, **times())
        found = seen.result
        scale = recipe.scale(found.anomaly_map)
        return Outcome(
            found.verdict,
            found.reason,
            score=found.score,
            good_share=found.good_share,
            regions=[region.as_json() for region in found.regions],
            thresholds=recipe.thresholds,
            model=recipe.model,
            **seen.optics._asdict(),
            golden=self._most_similar(ticket, seen, recipe.name),
            scale=[scale.low, scale.threshold, scale.high],
            size=list(found.anomaly_map.shape),
            **times(),
        )

    def _most_similar(self, ticket: Ticket, seen: Seen, recipe: str) -> str:
        """The picture of the part that passed and looks most like this one; empty before any has passed."""
        passed = self._passed.setdefault(recipe, deque(maxlen=PASSED_KEPT))
        distances = [float(np.abs(seen.thumbnail - other).mean()) for _, other in passed]
        nearest = passed[int(np.argmin(distances))][0] if passed else ""
        if seen.result.verdict == "OK":
            passed.append((ticket.picture, seen.thumbnail))
        return nearest
