"""A vision transformer's tokens as feature maps of several strides.

A transformer has one grid of tokens, 14 or 16 pixels apart, from its first block to its last. Methods want maps at
strides 4, 8 and 16: tokens after the first, second and last third of the blocks, brought to these grids. Where a
token covers 14 pixels, the image is first brought to 14/16 of its size, so that tokens lie 16 of its own pixels apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from threecad.errors import SettingsError

STRIDES = (4, 8, 16)
"""Image pixels between two features, of the tokens behind each third of the blocks."""

STRIDE = STRIDES[-1]  # image pixels between two tokens


class TokenMaps(nn.Module):
    """Maps [(B, C, H/s, W/s) for each stride s] of normalised images (B, 3, H, W).

    Args:
        network: timm's transformer, whose sizes follow the image.
        name: of the backbone, for errors.
        strides: of 4, 8 and 16, fine to coarse.

    Raises:
        SettingsError: another stride.
    """

    def __init__(self, network: Any, name: str, strides: Sequence[int]) -> None:
        super().__init__()
        missing = [stride for stride in strides if stride not in STRIDES]
        if missing:
            raise SettingsError(
                f"backbone '{name}': expected features at strides {list(strides)}, found {list(STRIDES)}, "
                "to which a transformer's tokens are brought"
            )
        self.network = network
        self.strides = list(strides)
        self.patch_px = int(network.patch_embed.patch_size[0])
        depth = len(network.blocks)
        self.blocks = [depth * (STRIDES.index(stride) + 1) // len(STRIDES) - 1 for stride in strides]
        network.blocks = network.blocks[: max(self.blocks) + 1]

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = (side // STRIDE for side in image.shape[-2:])
        if self.patch_px != STRIDE:
            size = (height * self.patch_px, width * self.patch_px)
            image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.network.forward_intermediates(
            image, indices=self.blocks, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return [_at_stride(maps, stride) for maps, stride in zip(tokens, self.strides, strict=True)]


def _at_stride(maps: Tensor, stride: int) -> Tensor:
    """Maps (B, C, H/16, W/16) of tokens at another stride."""
    if stride == STRIDE:
        return maps
    height, width = maps.shape[-2:]
    size = (height * STRIDE // stride, width * STRIDE // stride)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
