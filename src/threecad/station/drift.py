"""Whether parts are still like the first ones: conformal test martingales on what passes.

Each part that passed is ranked among the good parts and all that passed before it, ties broken at random. While parts
are exchangeable, these ranks are independent and uniform, whatever the scores' distribution; a fair game against them
then multiplies its stake by C with probability at most 1 / C, over the whole run (Ville). The game is the Simple Jumper
(Vovk, Petej, Nouretdinov, Ahlberg, Carlsson 2021, "Retrain or not retrain: conformal test martingales for change-point
detection"), which bets on high or low ranks and changes its mind now and then.

Scores, brightness, sharpness and the part's position are watched. Only parts that passed count, so that a few
defects more are no drift; of the good parts those below the same threshold. The chance of any false alarm before the
next restart is at most `ALPHA`, all of them together. The engineer restarts a watch, and so do other thresholds,
another model, and `RENEWED_AFTER` parts.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from threecad.station.inspecting import Recipe
from threecad.station.line import Line

ALPHA = 0.01
"""Chance of any false alarm, at most."""

BETS, JUMP = (-1.8, -0.9, 0.0, 0.9, 1.8), 0.01
KEPT = 400  # points of the charts

RENEWED_AFTER = 30_000
"""Parts that passed after which a watch begins anew by itself, so that a station is up again within seconds."""

PASSED = "recipe = ? AND verdict = 'OK' AND across IS NOT NULL"  # records from before positions were measured lack it

ADVICE = {
    "score": "Scores of parts that pass have shifted. Look at the last parts and at lamp, lens and fixture; "
    "if the parts themselves have changed, calibrate with good ones of today or fit anew.",
    "brightness": "Pictures have become darker or brighter. Check the lamp, the exposure and stray light.",
    "sharpness": "Pictures have become less or more sharp. Clean the lens, check focus and vibration.",
    "position across": "Parts lie further left or right. Check the fixture, the camera's mount and the trigger.",
    "position down": "Parts lie further up or down. Check the fixture, the camera's mount and the trigger.",
}


@dataclass
class Martingale:
    """The stake of a game against ranks being uniform, and all values ranked so far."""

    ordered: list[float] = field(default_factory=list)
    stakes: list[float] = field(default_factory=lambda: [1 / len(BETS)] * len(BETS))  # shares of the whole
    log10: float = 0.0  # of the whole
    highest: float = 0.0  # that `log10` ever was

    def rank(self, value: float, tie: float) -> float:
        """Share of values at least as high, in (0, 1); the value then belongs to them.

        Args:
            tie: uniform in (0, 1); which place among equals.
        """
        low, high = bisect_left(self.ordered, value), bisect_right(self.ordered, value)
        rank = (len(self.ordered) - high + tie * (high - low + 1)) / (len(self.ordered) + 1)
        insort(self.ordered, value)
        return rank

    def bet(self, rank: float) -> None:
        """Play a round."""
        mixed = [(1 - JUMP) * stake + JUMP / len(BETS) for stake in self.stakes]
        won = [stake * (1 + bet * (rank - 0.5)) for stake, bet in zip(mixed, BETS, strict=True)]
        whole = sum(won)
        self.stakes = [stake / whole for stake in won]
        self.log10 += math.log10(whole)
        self.highest = max(self.highest, self.log10)


class Point(NamedTuple):
    """One part that passed, for the charts."""

    part: int
    values: tuple[float, ...]  # as `ADVICE`
    logs: tuple[float, ...]  # log10 of the stakes after it


class Alarm(NamedTuple):
    """Something has shifted."""

    what: str  # key of `ADVICE`
    part: int  # at which it was found
    advice: str


class Watch:
    """What has passed under one recipe since the last restart."""

    def __init__(self, line: Line, recipe: Recipe) -> None:
        self.line, self.recipe = line, recipe
        self.seq = _restarted(line, recipe.name)
        highest = recipe.thresholds.get("review", math.inf)
        scores = sorted(score for score in recipe.good_scores.tolist() if score <= highest)
        self.games = {what: Martingale(scores if what == "score" else []) for what in ADVICE}
        self.points: deque[Point] = deque(maxlen=KEPT)
        self.alarms: dict[str, Alarm] = {}
        self.count = 0  # parts that have passed

    @property
    def limit(self) -> float:
        """log10 of the stake at which an alarm is raised."""
        return math.log10(len(ADVICE) / ALPHA)

    def update(self) -> list[Alarm]:
        """Alarms that are new, after all parts that have passed by now."""
        query = (
            "SELECT chain.seq, parts.id, score, brightness, sharpness, across, down, hash "
            f"FROM parts JOIN chain USING (seq) WHERE {PASSED} AND parts.seq > ? ORDER BY parts.seq"
        )
        new = []
        for seq, part, *values, sha256 in self.line.store.read(query, (self.recipe.name, self.seq)):
            self.seq = seq
            new.extend(self.add(part, values, sha256))
        return new

    def add(self, part: int, values: Iterable[float], sha256: str) -> list[Alarm]:
        """Alarms that one more part raises.

        Args:
            sha256: of its record; ties are broken by it, so that the same records give the same alarms.
        """
        self.count += 1
        values, new = tuple(values), []
        for place, (what, value) in enumerate(zip(ADVICE, values, strict=True)):
            game = self.games[what]
            tie = (int(sha256[12 * place : 12 * place + 12], 16) + 0.5) / 16**12
            game.bet(game.rank(value, tie))
            if game.log10 >= self.limit and what not in self.alarms:
                self.alarms[what] = Alarm(what, part, ADVICE[what])
                new.append(self.alarms[what])
        self.points.append(Point(part, values, tuple(game.log10 for game in self.games.values())))
        return new


class Watches:
    """The watch over each recipe of a line. Safe to call from several threads."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._watches: dict[str, Watch] = {}
        self._lock = threading.Lock()

    def update(self, recipe: str) -> Watch:
        """The watch over a recipe, up to date; each alarm is recorded once."""
        with self._lock:
            now = self.line.recipes[recipe]
            watch = self._watches.get(recipe)
            if watch is None or watch.recipe is not now or watch.count >= RENEWED_AFTER:
                watch = self._watches[recipe] = Watch(self.line, now)
            for alarm in watch.update():
                self._note(recipe, alarm)
            return watch

    def restart(self, recipe: str, who: str) -> None:
        """Forget what has passed: the engineer has mended what raised an alarm."""
        self.line.store.note("watch", {"recipe": recipe, "who": who})
        with self._lock:
            self._watches.pop(recipe, None)

    def _note(self, recipe: str, alarm: Alarm) -> None:
        content = {"recipe": recipe, **alarm._asdict()}
        if all(row.content != content for row in self.line.store.notes("alarm")):  # a watch begins anew at each start
            self.line.store.note("alarm", content)


def _restarted(line: Line, recipe: str) -> int:
    """After which record the watch begins."""
    rows = [row for kind in ("model", "thresholds", "calibration", "watch") for row in line.store.notes(kind)]
    seq = max((row.seq for row in rows if row.content["recipe"] == recipe), default=0)
    passed = f"FROM parts WHERE {PASSED} AND seq > ?"
    count = line.store.read(f"SELECT count(*) {passed}", (recipe, seq))[0][0]
    skipped = RENEWED_AFTER * (count // RENEWED_AFTER)
    if not skipped:
        return seq
    return int(line.store.read(f"SELECT seq {passed} ORDER BY seq LIMIT 1 OFFSET ?", (recipe, seq, skipped - 1))[0][0])
