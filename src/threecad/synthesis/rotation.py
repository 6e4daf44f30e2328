"""Rotation of a batch, each image by its own angle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """`images` (B, C, H, W) turned about their centre: bilinear, same canvas, 0 where nothing was.

    Args:
        degrees: (B,) angles, counter-clockwise.
    """
    height, width = images.shape[-2:]
    radians = torch.deg2rad(degrees.to(images))
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The grid's coordinates run from -1 to 1 along both sides; the ratios turn them into pixels and back.
    across = torch.stack([cosine, -sine * height / width, zero], dim=1)
    down = torch.stack([sine * width / height, cosine, zero], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [len(images), 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_degrees(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """(count,) angles uniform in [-limit, limit] degrees."""
    return limit * (2 * torch.rand(count, generator=generator, device=generator.device) - 1)
