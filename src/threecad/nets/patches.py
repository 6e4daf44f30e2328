"""One vector a patch: features of several scales, gathered over neighbourhoods, on one grid (PatchCore; SimpleNet)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.maps import full_precision, upsample
from threecad.nets.pyramid import Pyramid


class PatchPooling(nn.Module):
    """Features of several scales as one vector a patch.

    Args:
        channels, strides: of the scales, fine to coarse.
        most_values: a neighbourhood's values are pooled to at most so many a scale, and those of all scales together
            again to at most so many. None keeps one value a channel, its mean over the neighbourhood.
        side: of a neighbourhood, in features; odd.
        stride: image pixels between two patches; coarser scales are brought to it by interpolation, finer ones by
            averaging.

    Attributes:
        values: D, length of a vector.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], most_values: int | None, side: int = 3, stride: int = 8
    ) -> None:
        super().__init__()
        self.first, self.side, self.stride = strides[0], side, stride
        self.scale_values = [count if most_values is None else min(most_values, count * side**2) for count in channels]
        self.values = sum(self.scale_values) if most_values is None else min(most_values, sum(self.scale_values))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, H/stride, W/stride, D) of features [(B, C_i, H/s_i, W/s_i)]."""
        size = [side * self.first // self.stride for side in features[0].shape[-2:]]
        pooled = [
            _to_grid(_aware(scale, values, self.side), size)
            for scale, values in zip(features, self.scale_values, strict=True)
        ]
        return average(torch.cat(pooled, dim=1).flatten(2), self.values).transpose(1, 2).unflatten(1, size)


class PatchFeatures(nn.Module):
    """Vectors of locally aware patches, of images.

    Args:
        pyramid: gives the scales.
        most_values, side, stride: as of `PatchPooling`.
    """

    def __init__(self, pyramid: Pyramid, most_values: int | None, side: int = 3, stride: int = 8) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.pool = PatchPooling(pyramid.channels, pyramid.strides, most_values, side, stride)
        self.values = self.pool.values

    def forward(self, image: Tensor) -> Tensor:
        """(B, H/stride, W/stride, D) of images (B, 3, H, W)."""
        features = self.pyramid(image)
        with full_precision(image):
            return self.pool(features)


def average(vectors: Tensor, values: int) -> Tensor:
    """Adaptive average pooling along a vector's values: (B, V, positions) -> (B, values, positions)."""
    length = vectors.shape[1]
    if length % values:
        return F.adaptive_avg_pool1d(vectors.transpose(1, 2), values).transpose(1, 2)
    return vectors if length == values else vectors.unflatten(1, (values, length // values)).mean(dim=2)


def _aware(scale: Tensor, values: int, side: int) -> Tensor:
    """Each position's neighbourhood, zero beyond the border, pooled: (B, C, h, w) -> (B, values, h, w)."""
    if values == scale.shape[1]:
        return F.avg_pool2d(scale, side, stride=1, padding=side // 2)
    neighbourhoods = F.unfold(scale, side, padding=side // 2)  # (B, C·side², positions), a channel's together
    return average(neighbourhoods, values).unflatten(2, scale.shape[-2:])


def _to_grid(vectors: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, h, w) at the size of the grid."""
    finer = vectors.shape[-2] // size[0]
    if finer > 1:
        return F.avg_pool2d(vectors, finer)
    return vectors if vectors.shape[-2] == size[0] else upsample(vectors, size, align_corners=False)
