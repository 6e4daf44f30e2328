"""Puts textures into images where a Perlin mask says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from threecad.records import Batch
from threecad.synthesis import TextureSource
from threecad.synthesis.augment import augment_textures
from threecad.synthesis.noise import perlin_mask
from threecad.synthesis.rotation import random_degrees, rotate

ROUNDING = 1e-3  # so that a level that float32 holds as 127.99999 stays 128


@dataclass(frozen=True)
class TextureSynthesizer:
    """The anomalies of DRAEM (Zavrtanik et al., ICCV 2021) as CFRG, DeSTSeg, DRAEM and RealNet use them.

    Inside the mask: augmented = opacity · texture + (1 - opacity) · image; outside, and in images that are not chosen:
    augmented = image. The defaults are CFRG's and DeSTSeg's (their β is 1 - opacity). About 5 % of the masks are empty.
    """

    textures: TextureSource
    """Where the anomalies' appearance comes from."""

    opacity: tuple[float, float] = (0.2, 1.0)
    """Range of the texture's weight inside the mask, drawn uniformly for each image."""

    share: float = 1.0
    """Chance of an image to be chosen for an anomaly; the others keep an all-zero mask. DRAEM and RealNet: 0.5."""

    augment: bool = False
    """Whether textures pass three of ten image operations first, as in DRAEM and RealNet."""

    rotate_clean: float = 0.0
    """Chance of a normal image to be rotated by U(-90, 90) degrees, corners black, before all else. DRAEM: 0.3."""

    eight_bit: bool = False
    """Whether what is blended is cut down to multiples of 1/255, as RealNet does."""

    foreground: Callable[[Tensor], Tensor] | None = None
    """From images (B, 3, H, W) to (B, 1, H, W), 1.0 where an anomaly may lie; None: anywhere. RealNet's option."""

    @property
    def source(self) -> str:
        """The texture source's name."""
        return self.textures.name

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: Generator) -> Batch:
        """A batch whose `image` is `images`, rotated where `rotate_clean` says so; deterministic from `generator`."""
        image = self._rotated(images, generator)
        if self.share >= 1:
            return Batch(image, *self._alter(image, generator))
        augmented, mask = image.clone(), image.new_zeros(len(image), 1, *image.shape[-2:])
        chosen = _chosen(len(image), self.share, generator).to(image.device)
        if len(chosen):
            augmented[chosen], mask[chosen] = self._alter(image[chosen], generator)
        return Batch(image, augmented, mask)

    def _rotated(self, images: Tensor, generator: Generator) -> Tensor:
        if self.rotate_clean <= 0:
            return images
        chosen = _chosen(len(images), self.rotate_clean, generator)
        degrees = random_degrees(len(chosen), 90, generator).to(images.device)
        chosen = chosen.to(images.device)
        return images.index_copy(0, chosen, rotate(images[chosen], degrees)) if len(chosen) else images

    def _alter(self, image: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """`image` (B, 3, H, W) with an anomaly each, and their masks (B, 1, H, W)."""
        count, _, height, width = image.shape
        mask = perlin_mask(count, (height, width), generator).to(image.device)
        if self.foreground is not None:
            mask *= self.foreground(image)
        texture = self.textures.sample(count, (height, width), generator)
        if self.augment:
            texture = augment_textures(texture, generator)
        low, high = self.opacity
        opacity = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
        augmented = torch.lerp(image, texture.to(image.device), mask * opacity.to(image.device))
        if self.eight_bit:
            augmented = torch.where(mask > 0, (augmented * 255 + ROUNDING).floor() / 255, augmented)
        return augmented, mask


def _chosen(count: int, chance: float, generator: Generator) -> Tensor:
    """Indices of the images that win a draw with this chance each."""
    return (torch.rand(count, generator=generator, device=generator.device) < chance).nonzero().flatten()
