"""Anomalies nearer to what happens to parts: blobs and thin lines, foreign, displaced or over-exposed.

Ours, not the paper's: a foreign texture in a Perlin blob teaches little about cracks, scratches and uneven light.
Each image draws a shape and an appearance of its own:

    shape       a Perlin blob as in the paper | a thin band along the zero line of the noise, cut to some of its length
    appearance  a foreign texture as in the paper | another good part of the batch | the part itself, darker or lighter
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from threecad.records import Batch
from threecad.synthesis import TextureSource
from threecad.synthesis.noise import perlin_mask, perlin_noise


@dataclass(frozen=True)
class VariedSynthesizer:
    """Implements `Synthesizer`: every image gets an anomaly, as in CFRG."""

    textures: TextureSource
    """Where the foreign textures come from."""

    lines: float = 0.4
    """Chance of a thin band instead of a blob."""

    width: tuple[float, float] = (0.02, 0.10)
    """Range of half a band's width, in units of the noise."""

    foreign: float = 0.5
    """Chance of a foreign texture; the other appearances share the rest evenly."""

    opacity: tuple[float, float] = (0.2, 1.0)
    """Range of the texture's weight inside the mask."""

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: Generator) -> Batch:
        """A batch whose `image` is `images` and whose every image is altered inside its mask."""
        count, _, height, width = images.shape
        draw = _Draw(count, generator, images.device)
        mask = torch.where(
            draw.chance(self.lines),
            self._band((height, width), draw, generator),
            perlin_mask(count, (height, width), generator).to(images.device),
        )
        texture = self.textures.sample(count, (height, width), generator).to(images.device)
        displaced = images.roll(1, dims=0).flip(-1)
        exposed = (images * draw.between(0.4, 1.6) + draw.between(-0.25, 0.25)).clamp(0, 1)
        kind = draw.between(0, 1)
        middle = (1 + self.foreign) / 2
        appearance = torch.where(kind < self.foreign, texture, torch.where(kind < middle, displaced, exposed))
        return Batch(images, torch.lerp(images, appearance, mask * draw.between(*self.opacity)), mask)

    def _band(self, size: tuple[int, int], draw: _Draw, generator: Generator) -> Tensor:
        line = perlin_noise(draw.count, size, generator).abs().to(draw.device) < draw.between(*self.width)
        part = perlin_noise(draw.count, size, generator).to(draw.device) > draw.between(0.1, 0.4)
        return (line & part).float()


@dataclass(frozen=True)
class _Draw:
    """Random numbers (B, 1, 1, 1), one an image."""

    count: int
    generator: Generator
    device: torch.device

    def between(self, low: float, high: float) -> Tensor:
        numbers = torch.rand(self.count, 1, 1, 1, generator=self.generator, device=self.generator.device)
        return (low + (high - low) * numbers).to(self.device)

    def chance(self, share: float) -> Tensor:
        return self.between(0, 1) < share
