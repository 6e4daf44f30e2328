"""From features to an anomaly map: distances, upsampling, smoothing. Always float32, whatever the networks ran in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.errors import SettingsError


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A region in which autocast is off, for distances, losses, densities and statistics.

    In bf16 a cosine distance of two near features has 4 values where float32 has 1,003.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def cosine_distance(features: Tensor, others: Tensor) -> Tensor:
    """1 - cosine over channels at each position: (B, C, H, W) twice -> (B, 1, H, W) in [0, 2]."""
    with full_precision(features):
        return 1 - F.cosine_similarity(features.float(), others.float(), dim=1).unsqueeze(1)


def upsample(maps: Tensor, size: Sequence[int], align_corners: bool = True) -> Tensor:
    """Bilinear: (B, C, h, w) -> (B, C, H, W)."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)


class GaussianBlur(nn.Module):
    """Separable Gaussian filter of a map (B, 1, H, W); equals scipy's `gaussian_filter` at its defaults.

    Args:
        sigma_px: standard deviation.
        image_size: height and width of the maps.

    Raises:
        SettingsError: the filter reaches further than the image does.
    """

    kernel: Tensor  # (2 · radius + 1,)

    def __init__(self, sigma_px: float, image_size: Sequence[int]) -> None:
        super().__init__()
        self.radius = int(4 * sigma_px + 0.5)
        if self.radius > min(image_size):
            raise SettingsError(
                f"setting 'method.sigma_px': expected at most {min(image_size) / 4:g}, a quarter of the shorter side "
                f"of the image, found {sigma_px:g}"
            )
        offset = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offset / sigma_px) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum()).float(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        kernel, radius = self.kernel, self.radius
        with full_precision(maps):
            maps = F.conv2d(_mirror(maps, radius, -2), kernel.view(1, 1, -1, 1))
            return F.conv2d(_mirror(maps, radius, -1), kernel.view(1, 1, 1, -1))


def _mirror(maps: Tensor, radius: int, axis: int) -> Tensor:
    """Extend both ends of `axis` by `radius`, mirrored at the edge, the edge pixel included."""
    length = maps.shape[axis]
    before, after = maps.narrow(axis, 0, radius), maps.narrow(axis, length - radius, radius)
    return torch.cat([before.flip(axis), maps, after.flip(axis)], dim=axis)
