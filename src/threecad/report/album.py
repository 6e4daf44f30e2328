"""The tested parts of a page, each with a small picture of what was found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from threecad.evaluation import Seen
from threecad.images import resize_image, resize_map
from threecad.overlay import Scale, side_by_side
from threecad.runs import RunRecord
from threecad.verdicts import Verdicts, Word

MOST_PARTS = 150
"""Parts that are shown; of more, all mistakes and an even choice of the others."""

SIDE_PX = 200  # of one panel
QUALITY = 82  # of the JPEG files inside the page


@dataclass(frozen=True, slots=True)
class Part:
    """One tested part."""

    name: str
    category: str
    defect: str
    is_defect: bool
    score: float
    good_share: float | None
    verdict: Word
    picture: bytes  # JPEG of image, ground truth, map and contour


@dataclass
class Album:
    """Collects the parts of an evaluation: `evaluate(…, on_image=album.add)`."""

    record: RunRecord
    verdicts: Verdicts
    parts: list[Part] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """Keep a small picture of what was found in one image."""
        sample, score = seen.sample, seen.found.score
        category = category_of(self.verdicts, sample.category)
        scale = Scale.of_good(self.verdicts, category) or Scale.of_map(seen.found.anomaly_map)
        self.parts.append(
            Part(
                name=f"{sample.defect}/{sample.image.name}",
                category=sample.category,
                defect=sample.defect,
                is_defect=sample.is_defect,
                score=score,
                good_share=self.verdicts.good_share(score, category),
                verdict=self.verdicts.decide(score, category).word,
                picture=_picture(seen, scale),
            )
        )


def category_of(verdicts: Verdicts, category: str) -> str:
    """The category whose good parts to compare with: the only one where the run has learnt just that."""
    learnt = list(verdicts.good.parts)
    return learnt[0] if len(learnt) == 1 else category


def choose(parts: Sequence[Part], most: int = MOST_PARTS) -> list[Part]:
    """At most `most` parts, the most unusual first: all mistakes if they fit, and an even choice of the others."""
    by_score = sorted(parts, key=lambda part: -part.score)
    wrong = [part for part in by_score if is_mistake(part)]
    right = [part for part in by_score if not is_mistake(part)]
    kept = _evenly(wrong, most)
    return sorted(kept + _evenly(right, most - len(kept)), key=lambda part: -part.score)


def is_mistake(part: Part) -> bool:
    """Whether the part is a defect that passes or a good one that is rejected; what is set aside, a person decides."""
    return part.verdict == ("OK" if part.is_defect else "NG")


def _picture(seen: Seen, scale: Scale) -> bytes:
    height, width = seen.pixels.shape[:2]
    shrink = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    pixels = resize_image(seen.pixels, size)
    mask = resize_map(seen.mask, size) > 0  # so that the smallest defect stays visible
    anomaly_map = resize_map(seen.found.anomaly_map, size)
    return as_jpeg(Image.fromarray(side_by_side(pixels, mask, anomaly_map, scale)))


def as_jpeg(picture: Image.Image) -> bytes:
    """The file of a picture inside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _evenly(parts: list[Part], most: int) -> list[Part]:
    if len(parts) <= most:
        return parts
    return [parts[index] for index in np.linspace(0, len(parts) - 1, most).round().astype(int)] if most else []
