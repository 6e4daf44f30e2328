"""A fitted detector, ready to look at parts: pictures of any size in, map, score and how unusual that is out.

The network behind it may be torch's or an exported one: whatever takes pixels and gives maps and scores. Nothing here
needs torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
from PIL import Image

from threecad.errors import DataError
from threecad.framing import Frames, Framing, MapUnits
from threecad.images import Decoding, image_pixels, read_image
from threecad.registration import NOWHERE_ELSE, Offset
from threecad.verdicts import Conditions, GoodScores, Region, Verdicts, Word

if TYPE_CHECKING:
    from threecad.detector import Detector

BATCH = 8
"""Images that go through the network together."""

Picture = Path | str | Image.Image | np.ndarray
"""A file, a PIL image, or pixels (H, W, 3) uint8, of any size."""


class Network(Protocol):
    """What a predictor needs of a network, whichever library runs it."""

    image_size: tuple[int, int]
    precision: str

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, H, W) float32 and scores (B,) float32 of pixels (B, H, W, 3) uint8 at `image_size`."""


@dataclass(frozen=True)
class Found:
    """What a network says of one picture."""

    maps: np.ndarray  # (F, h, w) float32 of its frames; where there are several, in units of good parts' peaks
    score: float
    framing: Framing
    size: tuple[int, int]  # of the picture: height and width
    offset: Offset = NOWHERE_ELSE  # of its part from the golden one

    @cached_property
    def anomaly_map(self) -> np.ndarray:
        """The map (H, W) float32 at the size at which the network saw the picture."""
        return self.at(self.framing.image_size if self.framing.is_plain else self.framing.working_size(self.size))

    @property
    def doubt(self) -> str | None:
        """Why the part was not seen as good parts were; None where it was."""
        return "the part lies farther off than good parts do" if self.offset.is_beyond else None

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """The map (H, W) float32 at another size."""
        return self.framing.join(list(self.maps), self.size, size, self.offset)


@dataclass(frozen=True, slots=True)
class Result:
    """What a predictor says of one picture."""

    score: float  # higher = more anomalous; no fixed range
    anomaly_map: np.ndarray  # (H, W) float32 at the picture's own size
    good_share: float | None  # share of good parts that score at least as high; None without any to compare with
    verdict: Word  # OK, REVIEW or NG
    reason: str  # of a REVIEW or an NG
    regions: list[Region]  # areas that good parts do not have, in pixels of the picture, highest peak first


@dataclass
class Predictor:
    """A network with everything that is needed to look at parts. Loaded once, safe to call from several threads."""

    network: Network
    method: str
    verdicts: Verdicts = field(default_factory=lambda: Verdicts(GoodScores()))
    conditions: Conditions = field(default_factory=dict)  # what scores depend on here
    framing: Framing | None = None  # what of a picture the network sees; the whole of it without
    units: Mapping[str, MapUnits] = field(default_factory=dict)  # of the maps of tiles and of the whole
    decoding: Decoding = field(default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.view = self.framing or Framing(self.network.image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width to which pictures are resized."""
        return self.network.image_size

    @property
    def precision(self) -> str:
        """Arithmetic inside the network: `float32` or `bf16`."""
        return self.network.precision

    @property
    def detector(self) -> Detector:
        """The bare network: an `nn.Module` that maps images (B, 3, H, W) in [0, 1] to a `Prediction`.

        Raises:
            AttributeError: the network is an exported one.
        """
        return self.network.detector  # type: ignore[attr-defined, no-any-return]

    @overload
    def __call__(self, images: Picture, category: str | None = None) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[Picture], category: str | None = None) -> list[Result]: ...

    def __call__(self, images: Picture | Sequence[Picture], category: str | None = None) -> Result | list[Result]:
        """The result of a picture, or a list of results of several.

        Args:
            category: whose good parts to compare with, where the run has learnt several.

        Raises:
            DataError: a file that is no image, an array of another shape or type, a picture without a finite score.
            SettingsError: a category that the run has not learnt, or several and none is named.
        """
        if not isinstance(images, (list, tuple)):
            picture: Picture = images  # type: ignore[assignment]
            return self([picture], category)[0]
        category = self.verdicts.good.category(category)
        whole = [self._pixels(picture, index) for index, picture in enumerate(images)]
        found = self.inspect(self.view.frames(pixels) for pixels in whole)
        results = []
        for index, (pixels, one) in enumerate(zip(whole, found, strict=True)):
            if not math.isfinite(one.score):
                raise DataError(f"picture {index}: expected a finite score, found {one.score}; the run is damaged")
            anomaly_map = one.at(pixels.shape[:2])
            doubt = self.verdicts.doubt(pixels, category) or one.doubt
            (word, reason), share, regions = self.verdicts.judge(
                one.score, one.anomaly_map, pixels.shape[:2], category, doubt
            )
            results.append(Result(one.score, anomaly_map, share, word, reason, regions))
        return results

    def inspect(self, pictures: Iterable[Frames], batch: int = BATCH) -> Iterator[Found]:
        """What is found in each picture, in order.

        Args:
            pictures: the frames of each, as `view.frames` gives them.
            batch: frames that go through the network together; those of as many whole pictures, where each place has
                a network of its own.
        """
        places = self.view.places
        batch = places * max(batch // places, 1)
        waiting: deque[tuple[int, tuple[int, int], Offset]] = deque()

        def frames() -> Iterator[np.ndarray]:
            for pixels, size, offset in pictures:
                waiting.append((len(pixels), size, offset))
                yield from pixels

        results = _run(self.network, frames(), batch)
        for first in results:
            count, size, offset = waiting.popleft()
            of_one = [first, *islice(results, count - 1)]
            yield self._found(Found(np.stack([one[0] for one in of_one]), of_one[0][1], self.view, size, offset))

    def _found(self, found: Found) -> Found:
        """The same with maps in units, and the score: the network's own of a plain picture, else the map's peak."""
        if self.view.is_plain:
            return found
        if self.units:
            kinds = self.view.kinds(found.size)
            in_units = [self.units[kind].apply(one) for kind, one in zip(kinds, found.maps, strict=True)]
            found = replace(found, maps=np.stack(in_units))
        return replace(found, score=float(found.anomaly_map.max()))

    def _pixels(self, picture: Picture, index: int) -> np.ndarray:
        if isinstance(picture, (Path, str)):
            return read_image(Path(picture), **self.decoding)
        if isinstance(picture, Image.Image):
            return image_pixels(picture)
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise DataError(
                f"picture {index}: expected a path, a PIL image or an array (H, W, 3) of uint8, "
                f"found {type(picture).__name__} {tuple(pixels.shape)} of {pixels.dtype}"
            )
        return pixels


def predict_all(network: Network, images: Iterable[np.ndarray], batch: int = BATCH) -> Iterator[Found]:
    """Map and score of each image, in order.

    Args:
        images: pixels (H, W, 3) uint8 at the network's image size.
    """
    plain = Framing(network.image_size)
    return (Found(found[None], score, plain, network.image_size) for found, score in _run(network, images, batch))


def _run(network: Network, images: Iterable[np.ndarray], batch: int) -> Iterator[tuple[np.ndarray, float]]:
    for pixels in _batches(images, batch):
        maps, scores = network(pixels)
        yield from ((anomaly_map, float(score)) for anomaly_map, score in zip(maps, scores, strict=True))


def _batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    for image in images:
        pending.append(image)
        if len(pending) == size:
            yield np.stack(pending)
            pending = []
    if pending:
        yield np.stack(pending)
