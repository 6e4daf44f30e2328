"""The ten operations that DRAEM and RealNet put textures through, three for each texture.

They are those of imgaug 0.4 with its defaults, on a batch: each takes and returns 8-bit levels, whole numbers from 0
to 255 held in float32 (B, 3, H, W), and draws its own parameters for every texture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from threecad.synthesis.colour import AXES, hsv_to_rgb, rgb_to_hsv
from threecad.synthesis.rotation import random_degrees, rotate

ROUNDS = 3


@torch.no_grad()
def augment_textures(textures: Tensor, generator: Generator) -> Tensor:
    """`textures` (B, 3, H, W) in [0, 1] after three different operations each, in the drawn order."""
    levels = (textures * 255).round_()
    ranks = torch.rand(len(levels), len(OPERATIONS), generator=generator, device=generator.device)
    drawn = ranks.argsort(dim=1)[:, :ROUNDS].cpu()
    for round_ in range(ROUNDS):
        for index, operation in enumerate(OPERATIONS):
            members = (drawn[:, round_] == index).nonzero().flatten().to(levels.device)
            if len(members):
                levels[members] = operation(levels[members], generator).round_().clamp_(0, 255)
    return levels.div_(255)


def gamma_contrast(levels: Tensor, generator: Generator) -> Tensor:
    """255 (v/255)^g with g ~ U(0.5, 2) for each channel."""
    exponent = _uniform(levels, 0.5, 2, generator, channels=3)
    return 255 * (levels / 255) ** exponent


def brightness(levels: Tensor, generator: Generator) -> Tensor:
    """Lightness · U(0.8, 1.2) and + {-30…30}, in either order, in one of six colour spaces."""
    factor, summand = _uniform(levels, 0.8, 1.2, generator), _integer(levels, -30, 30, generator)
    factor_first = _integer(levels, 0, 1, generator) == 1
    space = _integer(levels, 0, len(AXES) - 1, generator).flatten()
    changed = torch.empty_like(levels)
    for index, axis in enumerate(AXES.values()):
        members = (space == index).nonzero().flatten()
        if len(members):
            rgb = levels[members] / 255
            lightness = 255 * axis.read(rgb)
            by, plus = factor[members], summand[members]
            multiplied = (lightness * by).clamp_(0, 255) + plus
            added = (lightness + plus).clamp_(0, 255) * by
            lightness = torch.where(factor_first[members], multiplied, added).clamp_(0, 255)
            changed[members] = 255 * axis.write(rgb, lightness / 255)
    return changed


def sharpness(levels: Tensor, generator: Generator) -> Tensor:
    """Between smoothed (0), unchanged (1) and sharpened (2) by a factor ~ U(0, 2)."""
    return sharpen(levels, _uniform(levels, 0, 2, generator))


def hue_and_saturation(levels: Tensor, generator: Generator) -> Tensor:
    """Hue and saturation shifted by two independent integers from {-50…50} of 255; hue in whole steps of 2 degrees."""
    steps = (_integer(levels, -50, 50, generator) * 180 / 255).trunc()
    hue, saturation, value = rgb_to_hsv(levels / 255).split(1, dim=1)
    saturation = (saturation + _integer(levels, -50, 50, generator) / 255).clamp_(0, 1)
    return 255 * hsv_to_rgb(torch.cat([hue + steps / 180, saturation, value], dim=1))


def solarize(levels: Tensor, generator: Generator) -> Tensor:
    """With probability 0.5, levels from a threshold in {32…128} upwards inverted."""
    threshold = _integer(levels, 32, 128, generator)
    threshold += 256 * _integer(levels, 0, 1, generator)
    return torch.where(levels >= threshold, 255 - levels, levels)


def posterize(levels: Tensor, generator: Generator) -> Tensor:
    """Only the upper 1 to 8 bits kept."""
    step = 2 ** (8 - _integer(levels, 1, 8, generator))
    return (levels / step).floor() * step


def invert(levels: Tensor, generator: Generator) -> Tensor:
    """255 - v."""
    return 255 - levels


def autocontrast(levels: Tensor, generator: Generator) -> Tensor:
    """Each channel stretched to 0…255 after a cutoff of {0…20} per cent at both ends."""
    return stretch(levels, _integer(levels, 0, 20, generator))


def equalize(levels: Tensor, generator: Generator) -> Tensor:
    """Each channel's histogram made flat, by Pillow's rule."""
    counts = histograms(levels)
    below = counts.cumsum(dim=2) - counts
    last = 255 - counts.flip(2).ne(0).int().argmax(dim=2, keepdim=True)
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, last)) // 255
    table = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step[..., None] > 0, _look_up(table.clamp(max=255).to(levels), levels), levels)


def rotation(levels: Tensor, generator: Generator) -> Tensor:
    """Rotated by U(-45, 45) degrees, corners black."""
    return rotate(levels, random_degrees(len(levels), 45, generator).to(levels.device))


Operation = Callable[[Tensor, Generator], Tensor]
OPERATIONS: tuple[Operation, ...] = (
    gamma_contrast,
    brightness,
    sharpness,
    hue_and_saturation,
    solarize,
    posterize,
    invert,
    autocontrast,
    equalize,
    rotation,
)


def sharpen(levels: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `ImageEnhance.Sharpness`: from the smoothed image through the image and beyond; the border is kept."""
    three_rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    three_by_three = three_rows[..., :-2] + three_rows[..., 1:-1] + three_rows[..., 2:]
    smooth = levels.clone()
    smooth[..., 1:-1, 1:-1] = ((three_by_three + 4 * levels[..., 1:-1, 1:-1]) / 13).round_()
    return smooth + factor * (levels - smooth)


def stretch(levels: Tensor, cutoff: Tensor) -> Tensor:
    """Pillow's `ImageOps.autocontrast` with `cutoff` (B, 1, 1, 1) per cent at both ends of each channel's histogram."""
    counts = histograms(levels)
    cut = (counts.sum(dim=2, keepdim=True) * cutoff.long().squeeze(-1)) // 100
    lowest = (counts.cumsum(dim=2) > cut).int().argmax(dim=2)[..., None, None]
    highest = 255 - (counts.flip(2).cumsum(dim=2) > cut).int().argmax(dim=2)[..., None, None]
    stretched = ((levels - lowest) * (255 / (highest - lowest).clamp(min=1))).trunc()
    return torch.where(highest > lowest, stretched, levels)


def histograms(levels: Tensor) -> Tensor:
    """How often each level occurs in each channel, int64 (B, 3, 256)."""
    count, channels = levels.shape[:2]
    place = 256 * torch.arange(count * channels, device=levels.device).view(count, channels, 1, 1)
    return torch.bincount((levels.long() + place).flatten(), minlength=256 * count * channels).view(
        count, channels, 256
    )


def _look_up(table: Tensor, levels: Tensor) -> Tensor:
    """`levels` replaced through each channel's `table` (B, 3, 256)."""
    return table.gather(2, levels.long().flatten(2)).view_as(levels)


def _uniform(levels: Tensor, low: float, high: float, generator: Generator, channels: int = 1) -> Tensor:
    draw = torch.rand(len(levels), channels, 1, 1, generator=generator, device=generator.device)
    return (low + (high - low) * draw).to(levels.device)


def _integer(levels: Tensor, low: int, high: int, generator: Generator) -> Tensor:
    """A whole number from low…high, both included, for each texture; float (B, 1, 1, 1)."""
    draw = torch.randint(low, high + 1, (len(levels), 1, 1, 1), generator=generator, device=generator.device)
    return draw.to(levels.device, levels.dtype)
