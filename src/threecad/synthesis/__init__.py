"""Synthetic anomalies: noise gives them a shape, textures an appearance, blending puts them into an image."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from threecad.records import Batch


class Synthesizer(Protocol):
    """Puts synthetic anomalies into a batch of normal images, on the device they are on."""

    @property
    def source(self) -> str | None:
        """Name of the texture source of their appearance, for the record; None where it is no texture's."""

    def __call__(self, images: Tensor, generator: Generator) -> Batch:
        """A batch from normal `images` (B, 3, H, W) in [0, 1]; deterministic from `generator` alone.

        The `image` of the result may differ from the one given (DRAEM rotates it).
        """


class TextureSource(Protocol):
    """A supply of foreign textures."""

    @property
    def name(self) -> str:
        """Recorded in the results: "folder:<name>#<fingerprint>" or "procedural"."""

    def sample(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        """`count` textures as (count, 3, H, W) in [0, 1] on the generator's device."""
