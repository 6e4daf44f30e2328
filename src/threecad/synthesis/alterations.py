"""Alterations of other kinds than segmenters learn from: what a method finds of them, it has not been taught to find.

    displaced   a piece of another part's texture, moved, small and faint (after CutPaste, Li et al., CVPR 2021)
    shaded      a soft change of brightness, as of stains and dents
    scratched   bent lines of one to four pixels, darker or brighter

Ours. They need no texture source; each leaves a part as it is outside the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from threecad.records import Batch
from threecad.synthesis.noise import THRESHOLD, lattice_noise, perlin_mask
from threecad.synthesis.rotation import random_degrees, rotate

Kind = Literal["displaced", "shaded", "scratched"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SOFT_PX = 9  # over which the edge of a shaded place fades
MOST_LINES = 3


@dataclass(frozen=True)
class Alterations:
    """A synthesizer of one kind of alterations."""

    kind: Kind

    @property
    def source(self) -> None:
        """None: they need no textures."""
        return None

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: Generator) -> Batch:
        """A batch of the images, altered; deterministic from `generator`."""
        altered, mask = _KINDS[self.kind](images, generator)
        return Batch(images, torch.where(mask > 0, altered, images), mask)


def _displaced(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pieces of the batch's images, rolled by an eighth of a side at least, with a weight of 0.15 to 0.75."""
    count, _, height, width = images.shape
    mask = (_spots(count, (height, width), generator) > THRESHOLD).float().to(images.device)
    other = torch.randperm(count, generator=generator, device=generator.device).to(images.device)
    moved = torch.stack(
        [
            image.roll([_integer(side // 8, side - side // 8, generator) for side in (height, width)], dims=(1, 2))
            for image in images[other]
        ]
    )
    return torch.lerp(images, moved, mask * _each(images, 0.15, 0.75, generator)), mask


def _shaded(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Brighter or darker by 0.03 to 0.15 of the range, uneven, and fading to nothing at the edge."""
    count, _, height, width = images.shape
    mask = perlin_mask(count, (height, width), generator)
    cells = 2.0 ** torch.randint(1, 4, (count, 2), generator=generator, device=generator.device)
    uneven = 1 + lattice_noise(cells, (height, width), generator)
    inside = F.avg_pool2d(mask, SOFT_PX, 1, SOFT_PX // 2, count_include_pad=False)
    soft = mask * (2 * inside - 1).clamp_min(0)  # 0 at the edge, lest there be one to see
    change = (soft * uneven).to(images.device) * _each(images, 0.03, 0.15, generator) * _sign(images, generator)
    return (images + change).clamp(0, 1), mask.to(images.device)


def _scratched(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """One to three lines, brighter or darker by 0.05 to 0.3 of the range."""
    count, _, height, width = images.shape
    mask = torch.stack([_lines((height, width), generator) for _ in range(count)]).unsqueeze(1).to(images.device)
    change = mask * _each(images, 0.05, 0.3, generator) * _sign(images, generator)
    return (images + change).clamp(0, 1), mask


def _lines(size: tuple[int, int], generator: Generator) -> Tensor:
    """(H, W), 1.0 on bent lines as long as a tenth to six tenths of the longer side."""
    device = generator.device
    y, x = torch.meshgrid(*(torch.arange(side, device=device) / max(size) for side in size), indexing="ij")
    drawn = torch.zeros(size, device=device)
    for _ in range(_integer(1, MOST_LINES + 1, generator)):
        turn, down, right, half, wide, bent = torch.rand(6, generator=generator, device=device)
        angle = torch.pi * turn
        y_away, x_away = y - down * size[0] / max(size), x - right * size[1] / max(size)
        along = x_away * angle.cos() + y_away * angle.sin()
        across = y_away * angle.cos() - x_away * angle.sin() + (bent - 0.5) * along.square()
        near = across.abs() * max(size) < 0.5 + 1.5 * wide
        drawn = torch.where(near & (along.abs() < 0.05 + 0.25 * half), 1.0, drawn)
    return drawn


def _spots(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Fine Perlin noise (count, 1, H, W) inside a window of a tenth to a half of each side, 0 outside."""
    cells = 2.0 ** torch.randint(3, 6, (count, 2), generator=generator, device=generator.device)
    noise = rotate(lattice_noise(cells, size, generator), random_degrees(count, 90, generator))
    window = torch.zeros_like(noise)
    for index in range(count):
        sides = [_integer(side // 10, side // 2, generator) for side in size]
        top, left = (_integer(0, side - own + 1, generator) for side, own in zip(size, sides, strict=True))
        window[index, :, top : top + sides[0], left : left + sides[1]] = 1
    return noise * window


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, max(high, low + 1), (), generator=generator, device=generator.device))


def _each(images: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """A number from U(low, high) for each image, (B, 1, 1, 1)."""
    drawn = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(images.device)


def _sign(images: Tensor, generator: Generator) -> Tensor:
    """-1 or 1 for each image, (B, 1, 1, 1)."""
    return _each(images, -1, 1, generator).sign()


_KINDS: dict[Kind, Callable[[Tensor, Generator], tuple[Tensor, Tensor]]] = {
    "displaced": _displaced,
    "shaded": _shaded,
    "scratched": _scratched,
}
