"""How a line does: counts, shares and latencies, for pages and for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from threecad.station.line import Line
from threecad.verdicts import Interval
from threecad.verdicts.bounds import share_of

WORDS = ("OK", "REVIEW", "NG")
LATEST = 1000
"""Parts over which latencies are taken."""


@dataclass(frozen=True, slots=True)
class Hour:
    """The parts of one hour."""

    start: str  # "2026-01-31T08"
    counts: dict[str, int]  # by verdict

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the latest parts, in milliseconds; None before there are any."""

    p50: float | None
    p99: float | None


def hours(line: Line, recipe: str, last: int = 24) -> list[Hour]:
    """The parts of the last hours, the oldest first, those without any included."""
    this = datetime.now(UTC)
    starts = [(this - timedelta(hours=back)).strftime("%Y-%m-%dT%H") for back in range(last - 1, -1, -1)]
    query = (
        "SELECT substr(at, 1, 13), verdict, count(*) FROM parts "
        "WHERE recipe = ? AND substr(at, 1, 13) >= ? AND verdict IS NOT NULL GROUP BY 1, 2"
    )
    counts = {(hour, verdict): count for hour, verdict, count in line.store.read(query, (recipe, starts[0]))}
    return [Hour(start, {word: counts.get((start, word), 0) for word in WORDS}) for start in starts]


def share_rejected(counts: dict[str, int], confidence: float = 0.95) -> dict[str, Interval]:
    """Of all parts counted, the shares that are NG, and REVIEW or NG, with Clopper–Pearson intervals."""
    total = sum(counts.values())
    ng, review = counts.get("NG", 0), counts.get("REVIEW", 0)
    return {"NG": share_of(ng, total, confidence), "REVIEW or NG": share_of(ng + review, total, confidence)}


def latency(line: Line, recipe: str) -> Latency:
    """Median and 99 % quantile of the inspection of the latest parts."""
    latest = "FROM parts INDEXED BY parts_recipe WHERE recipe = ? AND duration_ms > 0 ORDER BY id DESC LIMIT ?"
    found = [duration for (duration,) in line.store.read(f"SELECT duration_ms {latest}", (recipe, LATEST))]
    if not found:
        return Latency(None, None)
    p50, p99 = np.quantile(found, (0.5, 0.99))
    return Latency(float(p50), float(p99))


def metrics(line: Line) -> str:
    """Prometheus' text format, version 0.0.4."""
    counted = line.store.read(
        "SELECT recipe, verdict, count(*), total(duration_ms) FROM parts WHERE verdict IS NOT NULL GROUP BY 1, 2"
    )
    waiting = line.store.read(
        "SELECT count(*) FROM parts INDEXED BY parts_queue WHERE verdict IN ('NG', 'REVIEW') AND answer IS NULL"
    )[0][0]
    being = line.store.read("SELECT count(*) FROM parts WHERE seq IS NULL")[0][0]
    rows = line.store.read("SELECT count(*) FROM chain")[0][0]
    lines: list[str] = []

    def metric(name: str, kind: str, help_text: str, samples: list[tuple[dict[str, str], Any]]) -> None:
        lines.extend([f"# HELP threecad_{name} {help_text}", f"# TYPE threecad_{name} {kind}"])
        lines.extend(f"threecad_{name}{_labels(labels)} {value}" for labels, value in samples)

    by_verdict = [({"recipe": recipe, "verdict": verdict}, count) for recipe, verdict, count, _ in counted]
    metric("parts_total", "counter", "Parts with a record.", by_verdict)
    seconds = [({"recipe": recipe, "verdict": word}, total / 1000) for recipe, word, _, total in counted]
    metric("inspection_seconds_total", "counter", "Time spent inspecting.", seconds)
    metric("refused_total", "counter", "Requests answered 429 since the start.", [({}, line.refused)])
    metric("being_inspected", "gauge", "Accepted parts without a record yet.", [({}, being)])
    metric("review_queue", "gauge", "Parts that wait for a person.", [({}, waiting)])
    metric("records_total", "counter", "Rows of the chain.", [({}, rows)])
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""
