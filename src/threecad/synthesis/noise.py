"""Perlin noise and the masks cut from it, a whole batch with a different lattice per image in two matrix products.

Perlin noise is a sum over lattice corners (i, j) of gradient · offset, weighted by a fade along each axis:

    noise(y, x) = Σ_ij  f(y-i) f(x-j) [ (y-i) G^y_ij + (x-j) G^x_ij ],    f(d) = fade(1 - |d|),  0 where |d| > 1

Every factor depends on one axis only, so the sum is two products of (H, corners), (corners, corners) and (corners, W)
matrices. Lattices of any fineness share one padded size: corners that a lattice does not have are never near a pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from threecad.synthesis.rotation import random_degrees, rotate

FINEST_EXPONENT = 5  # 2^5 cells along a side
NARROWEST_CELL_PX = 4  # a finer lattice would be sampled next to its corners only, where the noise is zero
THRESHOLD = 0.5


def perlin_mask(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Masks (count, 1, H, W), 1.0 where rotated Perlin noise exceeds 0.5, else 0.0; about 5 % of them are empty."""
    return (perlin_noise(count, size, generator) > THRESHOLD).float()


def perlin_noise(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Noise (count, 1, H, W), about in [-1, 1], on the generator's device.

    Each image draws its cells along both axes from {1, 2, 4, 8, 16, 32} (sides below 128 px leave out cells narrower
    than 4 px) and is then rotated by U(-90, 90) degrees: bilinear resampling on the same canvas, 0 outside of it.
    The size need not be a multiple of the cells.
    """
    finest = torch.tensor([_finest_exponent(side) for side in size], device=generator.device)
    draws = torch.rand(count, 2, generator=generator, device=generator.device)
    cells = 2.0 ** torch.floor(draws * (finest + 1))
    noise = lattice_noise(cells, size, generator)
    return rotate(noise, random_degrees(count, 90, generator))


def lattice_noise(cells: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
    """Unrotated Perlin noise (B, 1, H, W), about in [-1, 1].

    Args:
        cells: (B, 2) whole numbers of lattice cells along the rows' axis and the columns' axis.
    """
    corners = int(cells.max()) + 1
    rows, row_offsets = _axis(cells[:, 0], size[0], corners)
    columns, column_offsets = _axis(cells[:, 1], size[1], corners)
    angles = 2 * math.pi * torch.rand(len(cells), corners, corners, generator=generator, device=generator.device)
    left = torch.cat([row_offsets @ angles.sin(), rows @ angles.cos()], dim=2)
    right = torch.cat([columns, column_offsets], dim=2)
    return (math.sqrt(2) * left @ right.transpose(1, 2)).unsqueeze(1)


def _axis(cells: Tensor, side: int, corners: int) -> tuple[Tensor, Tensor]:
    """Fade weight of each corner at each pixel along one axis, and weight times offset; both (B, side, corners)."""
    finenesses, fineness = cells.unique(return_inverse=True)  # few, so that the arithmetic is done on a small table
    pixels = torch.arange(side, device=cells.device) / side
    offset = (pixels * finenesses[:, None])[..., None] - torch.arange(corners, device=cells.device)
    t = (1 - offset.abs()).clamp_(min=0)
    weight = t * t * t * (t * (6 * t - 15) + 10)  # Perlin's quintic fade; f(1 - t) = 1 - f(t): neighbours sum to 1
    return weight[fineness], (weight * offset)[fineness]


def _finest_exponent(side: int) -> int:
    return min(FINEST_EXPONENT, max(0, int(math.log2(max(side / NARROWEST_CELL_PX, 1)))))
