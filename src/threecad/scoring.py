"""Good parts as a model sees them that has not learnt from them: what every threshold stands on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from threecad.data.loading import Progress
from threecad.errors import DataError, RunError
from threecad.files import write_text, writing
from threecad.fit_data import FitData
from threecad.images import image_size, read_image
from threecad.inference import TorchNetwork
from threecad.predictor import BATCH, predict_all
from threecad.records import Prediction, Sample
from threecad.threads import ordered
from threecad.verdicts import GoodLooks, GoodPart, GoodScores, joined_parts, look

Parts = dict[str, tuple[GoodPart, ...]]
"""Good parts by category."""


def score_parts(
    network: TorchNetwork,
    data: FitData,
    samples: Sequence[Sample],
    progress: Progress | None = None,
    forward: Callable[[Tensor], Prediction] | None = None,
    batch: int = BATCH,
) -> Parts:
    """The good parts that the samples show, by category.

    Args:
        forward: what is asked instead of the detector, such as its `left_out`.
        batch: images that go through the network together; for `left_out` the fit's, so that not a bit is another.

    Raises:
        RunError: a score or a map is not finite.
    """
    seen: dict[str, list[GoodPart]] = {category.name: [] for category in data.categories}
    network.forward = forward or network.detector
    pixels = data.pixels(samples, network.image_size, progress)
    for sample, found in zip(samples, predict_all(network, pixels, batch), strict=True):
        known = data.known[sample.image]
        try:
            part = GoodPart.seen(known.part, found.score, found.anomaly_map, known.lot, image_size(sample.image))
        except DataError:
            raise RunError(f"expected a finite score of the good part {sample.image}, found none; fit anew") from None
        seen[sample.category].append(part)
    return {name: joined_parts(parts) for name, parts in seen.items()}


def look_at(samples: Sequence[Sample], progress: Progress | None = None) -> dict[str, GoodLooks]:
    """How bright, sharp and large the good images of each category are, at their own size."""
    looks: dict[str, list[GoodLooks]] = {}
    seen = ordered(lambda sample: look(read_image(sample.image)), samples)
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
