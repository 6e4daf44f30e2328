"""A fitted detector, ready to look at parts: pictures of any size in, map, score and how unusual that is out.

The network behind it may be torch's or an exported one: whatever takes pixels and gives maps and scores. Nothing here
needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
from PIL import Image

from threecad.errors import DataError
from threecad.images import image_pixels, read_image, resize_image, resize_map
from threecad.overlay import Scale
from threecad.verdicts import good_share

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


class Found(NamedTuple):
    """What a network says of one image."""

    anomaly_map: np.ndarray  # (H, W) float32 at the network's image size
    score: float


@dataclass(frozen=True, slots=True)
class GoodParts:
    """What the good parts that a fit kept aside looked like to its detector."""

    scores: Sequence[float] = ()
    peaks: Sequence[float] = ()  # the largest value of each of their maps

    @property
    def scale(self) -> Scale | None:
        """Colours of maps; None without any part."""
        return Scale.of_good(self.peaks)


@dataclass(frozen=True, slots=True)
class Result:
    """What a predictor says of one picture."""

    score: float  # higher = more anomalous; no fixed range
    anomaly_map: np.ndarray  # (H, W) float32 at the picture's own size
    good_share: float | None  # share of good parts that score at least as high; None where none were kept aside


@dataclass
class Predictor:
    """A network with everything that is needed to look at parts. Loaded once, safe to call from several threads."""

    network: Network
    method: str
    good: Mapping[str, GoodParts] = field(default_factory=dict)  # by category
    decoding: Mapping[str, Any] = field(default_factory=dict)  # how files become pixels: keywords of `read_image`
    identity: str | None = None  # SHA-256 of what it was loaded from

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
        """
        if isinstance(images, (Path, str, Image.Image)) or hasattr(images, "__array__"):
            picture: Picture = images  # type: ignore[assignment]
            return self([picture], category)[0]
        good = self.good_parts(category)
        whole = [self._pixels(picture, index) for index, picture in enumerate(images)]
        found = predict_all(self.network, (resize_image(pixels, self.image_size) for pixels in whole))
        results = []
        for index, (pixels, one) in enumerate(zip(whole, found, strict=True)):
            if not math.isfinite(one.score):
                raise DataError(f"picture {index}: expected a finite score, found {one.score}; the run is damaged")
            anomaly_map = resize_map(one.anomaly_map, pixels.shape[:2])
            share = good_share(one.score, good.scores) if good.scores else None
            results.append(Result(one.score, anomaly_map, share))
        return results

    def good_parts(self, category: str | None = None) -> GoodParts:
        """Those of a category; without a name, those of the only one, and none where there are several.

        Raises:
            DataError: the run has not learnt that category.
        """
        if category is None:
            return next(iter(self.good.values())) if len(self.good) == 1 else GoodParts()
        if category not in self.good:
            raise DataError(f"the run has learnt {', '.join(self.good)} and says nothing of '{category}'")
        return self.good[category]

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
    for pixels in _batches(images, batch):
        maps, scores = network(pixels)
        for anomaly_map, score in zip(maps, scores, strict=True):
            yield Found(anomaly_map, float(score))


def _batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    for image in images:
        pending.append(image)
        if len(pending) == size:
            yield np.stack(pending)
            pending = []
    if pending:
        yield np.stack(pending)
