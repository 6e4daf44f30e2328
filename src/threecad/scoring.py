"""Good parts as a model sees them that has not learnt from them: what every threshold stands on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from threecad.data.hashes import Progress
from threecad.errors import DataError, RunError
from threecad.files import write_text, writing
from threecad.fit_data import FitData
from threecad.framing import Frames, Framing
from threecad.images import Decoding, image_size, limit_of, read_image
from threecad.predictor import BATCH, Found, Predictor
from threecad.records import Sample
from threecad.threads import ordered
from threecad.verdicts import GoodLooks, GoodPart, GoodScores, joined_parts, look

Parts = dict[str, tuple[GoodPart, ...]]
"""Good parts by category."""


def score_parts(
    predictor: Predictor,
    data: FitData,
    samples: Sequence[Sample],
    framing: Framing,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> Parts:
    """The good parts that the samples show, by category.

    Args:
        batch: frames that go through the network together; for `left_out` the fit's, so that not a bit is another.

    Raises:
        RunError: a score or a map is not finite.
    """
    seen: dict[str, list[GoodPart]] = {category.name: [] for category in data.categories}
    for sample, found in zip(samples, _found(predictor, data, samples, framing, progress, batch), strict=True):
        known = data.known[sample.image]
        try:
            part = GoodPart.seen(known.part, found.score, found.anomaly_map, known.lot, found.size)
        except DataError:
            raise RunError(f"expected a finite score of the good part {sample.image}, found none; fit anew") from None
        seen[sample.category].append(part)
    return {name: joined_parts(parts) for name, parts in seen.items()}


def map_units(
    predictor: Predictor, data: FitData, samples: Sequence[Sample], framing: Framing, progress: Progress | None
) -> dict[str, tuple[float, float]]:
    """Centre and spread, by kind of frame, of the peaks of good parts' maps."""
    peaks: dict[str, list[float]] = {}
    for found in _found(predictor, data, samples, framing, progress):
        for kind, anomaly_map in zip(framing.kinds(found.size), found.maps, strict=True):
            peaks.setdefault(kind, []).append(float(anomaly_map.max()))
    return {kind: (float(np.median(values)), float(np.std(values))) for kind, values in peaks.items()}


def _found(
    predictor: Predictor,
    data: FitData,
    samples: Sequence[Sample],
    framing: Framing,
    progress: Progress | None,
    batch: int = BATCH,
) -> Iterator[Found]:
    """What is found in each of some good images, in order."""
    rows = data.pixels(samples, framing, progress)
    sizes = [image_size(sample.image, **limit_of(data.decoding)) for sample in samples]
    offsets = data.offsets(samples, framing)
    count = len(rows) // max(len(samples), 1)
    frames = (rows[np.arange(k * count, (k + 1) * count)] for k in range(len(samples)))
    return predictor.inspect(map(Frames, frames, sizes, offsets), batch)


def look_at(samples: Sequence[Sample], decoding: Decoding, progress: Progress | None = None) -> dict[str, GoodLooks]:
    """How bright, sharp and large the good images of each category are, at their own size."""
    looks: dict[str, list[GoodLooks]] = {}
    seen = ordered(lambda sample: look(read_image(sample.image, **decoding)), samples)
    for done, (sample, one) in enumerate(zip(samples, seen, strict=True), start=1):
        looks.setdefault(sample.category, []).append(GoodLooks(one, one))
        if progress:
            progress(done, len(samples))
    return {name: GoodLooks.joined(several) for name, several in looks.items()}


class FoldsFolder:
    """RUN/folds: the state of each fold's fit, and the scores of those that are finished."""

    def __init__(self, run: Path) -> None:
        self.path = run / "folds"

    def of(self, fold: int) -> Path:
        """Folder of one fold's fit."""
        return self.path / str(fold + 1)

    def make(self, fold: int) -> Path:
        """The folder of one fold's fit, made where it is missing.

        Raises:
            FileError: it cannot be made.
        """
        with writing(self.of(fold)):
            self.of(fold).mkdir(parents=True, exist_ok=True)
        return self.of(fold)

    def read(self, fold: int) -> Parts | None:
        """Good parts of a fold that is finished; None where it is not."""
        file = self.of(fold) / "good.json"
        return GoodScores.from_json(file.read_text(encoding="utf-8")).parts if file.exists() else None

    def write(self, fold: int, parts: Parts) -> None:
        """Finish a fold: its good parts stay, the state of its fit goes."""
        write_text(self.of(fold) / "good.json", GoodScores(parts=parts).model_dump_json())
        (self.of(fold) / "state.safetensors").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)


def together(several: Iterable[Parts]) -> Parts:
    """The good parts of all folds, by category."""
    joined: Parts = {}
    for parts in several:
        for name, some in parts.items():
            joined[name] = (*joined.get(name, ()), *some)
    return joined
