"""The nouns that travel through the house: samples, batches, predictions, and the paper behind a method.

Imports no torch at run time, so that the command line can name methods without loading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GOOD = "good"
"""The `defect` of a normal image, and the name of its folder."""


class Split(StrEnum):
    """Which side of the tree an image lies on."""

    TRAIN = "train"
    VALIDATION = "validation"  # good images that a published set keeps aside
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on disk and what its folder says about it."""

    image: Path
    mask: Path | None  # None for a normal image, and where a category has no masks at all
    category: str
    defect: str  # "good" for normal images
    split: Split
    more_masks: tuple[Path, ...] = ()  # where a defective image has several; the defect is all of them together
    part: str | None = None  # names the part in the picture, where the data set tells; its views share it

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks of the image; none for a normal one."""
        return () if self.mask is None else (self.mask, *self.more_masks)

    @property
    def is_defect(self) -> bool:
        """Label of the image, from its folder; never from a resized mask, in which a tiny defect can vanish."""
        return self.defect != GOOD


@dataclass(frozen=True, slots=True)
class Batch:
    """What every method sees in training: RGB in [0, 1], not normalised."""

    image: Tensor  # (B, 3, H, W) normal
    augmented: Tensor  # (B, 3, H, W) with synthetic anomalies; equals `image` where the method asks for none
    mask: Tensor  # (B, 1, H, W) 1 where an anomaly was put

    def altered_within(self, inside: Tensor) -> Batch:
        """The same batch without the alterations outside the region of interest, (B, 1, H, W) of bool."""
        return Batch(self.image, self.augmented.where(inside, self.image), self.mask * inside)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(self.image.to(device), self.augmented.to(device), self.mask.to(device))


class Prediction(NamedTuple):
    """What a detector says of a batch of images."""

    anomaly_map: Tensor  # (B, 1, H, W) at input size; higher = more anomalous; no fixed range
    score: Tensor  # (B,)


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method was published."""

    name: str  # as the paper's tables print it
    title: str
    venue: str
    link: str
    group: str  # row group of Tables 3 and 4: E-b, A-syn, R-b, U-ni
    needs: Sequence[str] = ()  # what has to be there before `fit`: a backbone, textures, …
