"""RD's one-class bottleneck and mirrored decoder: from a pyramid to one small embedding, and back to a pyramid.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022. RD and RD++ call the
decoder a student, CFRG a recovery network (eq. 3); the parts are the same. Convolutions carry no bias.

The widths follow the teacher's channels. A teacher with narrow features (EfficientNet-Lite0: 24, 40, 112) would leave
stages too thin to learn in, so that stages are at least `FLOOR` wide and end in a 1×1 head to the teacher's channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLOOR = 128
"""Least channels between the blocks of a stage; the 3×3 convolutions inside are half as wide."""


class Recovery(nn.Module):
    """Bottleneck, then decoder: features fine to coarse in, features of the same shapes out (eq. 3).

    Args:
        channels: the teacher's channels at strides 4, 8, 16.
        signed: whether the teacher's features can be negative; if not, the recovered ones end in a ReLU.
        blocks: residual blocks of the decoder's stages, coarse to fine.
    """

    def __init__(self, channels: Sequence[int], signed: bool, blocks: Sequence[int] = (3, 4, 6)) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(channels)
        self.decoder = Decoder(channels, signed, blocks)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return self.decoder(self.bottleneck(features))


class Bottleneck(nn.Module):
    """Multi-scale fusion and one-class embedding: [(B, C_i, H/s_i, W/s_i)] -> (B, 2·C_3, H/32, W/32)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        _, inner, widest = stage_channels(channels)
        self.fuse_fine = nn.Sequential(*_halve(fine, inner), *_halve(inner, widest))
        self.fuse_middle = nn.Sequential(*_halve(middle, widest))
        embedded = 2 * widest
        self.embed = nn.Sequential(
            Residual(2 * widest + coarse, widest, embedded, down=True),
            Residual(embedded, widest, embedded),
            Residual(embedded, widest, embedded),
        )
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, middle, coarse = features
        return self.embed(torch.cat([self.fuse_fine(fine), self.fuse_middle(middle), coarse], dim=1))


class Decoder(nn.Module):
    """Three stages that each double the grid: (B, 2·C_3, H/32, W/32) -> features fine to coarse."""

    def __init__(self, channels: Sequence[int], signed: bool, blocks: Sequence[int] = (3, 4, 6)) -> None:
        super().__init__()
        widths = stage_channels(channels)
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        in_channels = 2 * widths[-1]
        for channel, width, count in zip(reversed(channels), reversed(widths), blocks, strict=True):
            headless = channel == width
            stage = [Residual(in_channels, width // 2, width, up=True)]
            stage += [Residual(width, width // 2, width) for _ in range(count - 1)]
            if headless and signed:
                stage[-1].end = nn.Identity()
            self.stages.append(nn.Sequential(*stage))
            end = nn.Identity() if signed else nn.ReLU(inplace=True)
            self.heads.append(nn.Identity() if headless else nn.Sequential(nn.Conv2d(width, channel, 1), end))
            in_channels = width
        initialise(self)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        recovered = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            embedding = stage(embedding)
            recovered.append(head(embedding))
        return recovered[::-1]


class Residual(nn.Module):
    """ResNet's bottleneck block; `down` halves the grid by a strided 3×3, `up` doubles it by a transposed 2×2."""

    def __init__(self, in_channels: int, width: int, out_channels: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        if up:
            across: nn.Module = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
            shortcut: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)
        else:
            stride = 2 if down else 1
            across = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            across,
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        straight = in_channels == out_channels and not (down or up)
        self.shortcut = nn.Identity() if straight else nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
        self.end: nn.Module = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.end(self.branch(features) + self.shortcut(features))


def stage_channels(channels: Sequence[int]) -> list[int]:
    """Channels between the blocks of each stage, fine to coarse."""
    return [max(channel, FLOOR) for channel in channels]


def _halve(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3×3 with stride 2, BatchNorm, ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def initialise(module: nn.Module) -> None:
    """Kaiming normal for convolutions; transposed ones keep PyTorch's default, as in RD's publication."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
