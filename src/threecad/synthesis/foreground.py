"""Where in an image the part is, so that anomalies can be kept on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from threecad.synthesis.augment import histograms
from threecad.synthesis.colour import luma

BRUSH_PX = 6


@torch.no_grad()
def otsu_foreground(images: Tensor) -> Tensor:
    """Masks (B, 1, H, W), 1.0 on the part, of `images` (B, 3, H, W) in [0, 1] that show it on a plain background.

    Otsu's threshold parts each image's grey levels; the side to which most of the image's edge belongs is background.
    Gaps and specks narrower than 6 px are closed and removed. An image of one level is all foreground.
    """
    grey = (255 * luma(images)).round_()
    bright = (grey > _otsu_thresholds(grey)).float()
    edge = torch.cat([bright[..., 0, :], bright[..., -1, :], bright[..., 0], bright[..., -1]], dim=2)
    inverted = edge.mean(dim=2) > 0.5
    part = torch.where(inverted[..., None, None], 1 - bright, bright)
    part = F.pad(part, [BRUSH_PX] * 4)  # room to grow, else what is near an edge would be closed onto it
    part = _grow(_shrink(_shrink(_grow(part))))[..., BRUSH_PX:-BRUSH_PX, BRUSH_PX:-BRUSH_PX]
    flat = grey.amax(dim=(2, 3), keepdim=True) == grey.amin(dim=(2, 3), keepdim=True)
    return torch.where(flat, torch.ones_like(part), part)


def _otsu_thresholds(grey: Tensor) -> Tensor:
    """Level t (B, 1, 1, 1) at which the variance between {v ≤ t} and {v > t} is largest."""
    shares = histograms(grey).double()
    shares /= shares.sum(dim=2, keepdim=True)
    below = shares.cumsum(dim=2)
    moment = (shares * torch.arange(256, device=grey.device)).cumsum(dim=2)
    variance = (moment[..., -1:] * below - moment) ** 2 / (below * (1 - below)).clamp(min=1e-9)
    return variance.argmax(dim=2)[..., None, None]


def _grow(mask: Tensor) -> Tensor:
    before, after = (BRUSH_PX - 1) // 2, BRUSH_PX // 2
    return F.max_pool2d(F.pad(mask, (before, after, before, after)), BRUSH_PX, stride=1)


def _shrink(mask: Tensor) -> Tensor:
    """The mirror of `_grow`, so that one after the other does not shift the mask."""
    return 1 - _grow(1 - mask.flip(2, 3)).flip(2, 3)
