"""Feature pyramids: a timm backbone seen as feature maps, fine to coarse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from threecad.errors import SettingsError, did_you_mean
from threecad.nets.weights import WeightFile, find_weights, load_into

# Families whose stages end in a ReLU. Others, such as the EfficientNets with linear bottlenecks, have signed features.
NON_NEGATIVE = ("resnet", "wide_resnet", "resnext", "seresnet", "seresnext", "regnet", "vgg", "densenet")


class Pyramid(nn.Module):
    """Feature maps of an image at several strides, float32 whatever the precision inside.

    Attributes:
        channels: channels at each stride.
        strides: image pixels between two neighbouring features, fine to coarse.
        signed: whether a feature can be negative.
        file: the pretrained weights' file; None for random weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, weights: str, strides: Sequence[int] = (4, 8, 16), trainable: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.trainable = trainable
        self.strides = list(strides)
        self.network, self.channels = _feature_network(backbone, self.strides)
        self.signed = not backbone.startswith(NON_NEGATIVE)
        self.file: WeightFile | None = find_weights(backbone, weights)
        if self.file is not None:
            load_into(self.network, self.file, backbone)
        self.network.requires_grad_(trainable)
        config = self.network.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.train(trainable)

    def train(self, mode: bool = True) -> Pyramid:
        """A frozen pyramid stays in eval mode, so that its BatchNorm statistics remain those of its training."""
        return super().train(mode and self.trainable)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features [(B, C, H/s, W/s) for each stride s] of images (B, 3, H, W) in [0, 1]."""
        return [features.float() for features in self.network((image - self.mean) / self.std)]


def _feature_network(backbone: str, strides: Sequence[int]) -> tuple[Any, list[int]]:
    """timm's network cut behind the last of `strides`, and its channels there."""
    import timm

    name, _, tag = backbone.partition(".")
    if not timm.is_model(name) or (tag and backbone not in timm.list_pretrained()):
        known = timm.list_pretrained(f"{name}*") if timm.is_model(name) else timm.list_models()
        raise SettingsError(f"unknown backbone '{backbone}'{did_you_mean(backbone, known)}")
    try:
        whole: Any = timm.create_model(backbone, pretrained=False, features_only=True)
        reductions = whole.feature_info.reduction()
    except (RuntimeError, AttributeError) as error:
        raise SettingsError(f"backbone '{backbone}' gives no feature maps: {error}") from None
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise SettingsError(f"backbone '{backbone}': expected features at strides {list(strides)}, found {reductions}")
    network: Any = timm.create_model(
        backbone, pretrained=False, features_only=True, out_indices=[reductions.index(stride) for stride in strides]
    )
    if hasattr(network, "_stage_out_idx"):  # timm's EfficientNets keep, and compute, the stages behind the last feature
        network.blocks = network.blocks[: max(network._stage_out_idx)]
    published: Any = timm.get_pretrained_cfg(backbone)
    network.default_cfg = published.to_dict()
    return network, network.feature_info.channels()
