"""Good parts of given scores, and verdicts from them."""

from __future__ import annotations

import numpy as np

from threecad.verdicts import AREAS_PX, GoodPart, GoodScores, Verdicts, VerdictSettings

FLAT = (0.0,) * len(AREAS_PX)


def parts(scores: list[float] | np.ndarray, lot: str | None = None) -> tuple[GoodPart, ...]:
    return tuple(
        GoodPart(part=f"{lot}{index}", lot=lot, score=score, peaks=(score,) * len(AREAS_PX))
        for index, score in enumerate(scores)
    )


def of_scores(scores: list[float] | np.ndarray, **settings: float | str) -> Verdicts:
    return Verdicts(GoodScores(parts={"plate": parts(scores)}), VerdictSettings.of(dict(settings)))
