"""Feature pyramids: a timm backbone, convolutional or a transformer, seen as feature maps, fine to coarse."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threecad.errors import SettingsError, did_you_mean
from threecad.nets.tokens import TokenMaps
from threecad.nets.weights import WeightFile, find_weights, load_into

NON_NEGATIVE = (
    r"resnet(10t|14t|18d?|26[dt]?|34d?|50[cdst]?|50_gn|101[cds]?|152[cds]?|200d?)",
    r"resnet(aa|blur|rs)\d+d?",
    r"wide_resnet(50|101)_2",
    r"resnext(50d?|101)_(32|64)x\d+d",
    r"seresnet(18|34|50t?|101|152d?|200d|269d)",
    r"seresnext(26[dt]|50|101d?)_(32|64)x\d+d",
    r"ecaresnet(light|26t|50[dt]|101d|200d|269d)(_pruned)?",
    r"res2net(50|101)(d|_\d+w_\d+s)",
    r"regnet[xy]_\d{3,4}(_tv)?",
    r"vgg(11|13|16|19)(_bn)?",
)
"""Families of timm whose stages all end in a ReLU. Every other backbone is taken to have signed features, which costs
a method little where it is wrong; the reverse would end decoders in a ReLU that cannot reach negative features."""


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
        self, backbone: str, weights: str | Path, strides: Sequence[int] = (4, 8, 16), trainable: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.trainable = trainable
        self.strides = list(strides)
        self.network, self.channels = _feature_network(backbone, self.strides)
        self.signed = not has_no_negative_features(backbone)
        self.file: WeightFile | None = find_weights(backbone, weights)
        if self.file is not None:
            published = self.network.network if isinstance(self.network, TokenMaps) else self.network
            load_into(published, self.file, backbone)
        self.network.requires_grad_(trainable)
        mean, std = _normalisation(backbone)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.train(trainable)

    def train(self, mode: bool = True) -> Pyramid:
        """A frozen pyramid stays in eval mode, so that its BatchNorm statistics remain those of its training."""
        return super().train(mode and self.trainable)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features [(B, C, H/s, W/s) for each stride s] of images (B, 3, H, W) in [0, 1]."""
        return [features.float() for features in self.network((image - self.mean) / self.std)]


def pretrained_pyramids(network: nn.Module) -> dict[str, Pyramid]:
    """The pyramids inside a network whose weights are those of a file, and stay so, by name."""
    named = {name: part for name, part in network.named_modules() if isinstance(part, Pyramid)}
    return {name: part for name, part in named.items() if part.file is not None and not part.trainable}


def has_no_negative_features(backbone: str) -> bool:
    """Whether the features of this timm backbone are known to leave a ReLU."""
    architecture = backbone.partition(".")[0]
    return any(re.fullmatch(family, architecture) for family in NON_NEGATIVE)


def _feature_network(backbone: str, strides: Sequence[int]) -> tuple[Any, list[int]]:
    """timm's network, without what comes behind the last of `strides`, and its channels there."""
    import timm

    reductions = _reductions(backbone)
    if len(reductions) > 1 == len(set(reductions)):  # a transformer
        transformer: Any = timm.create_model(backbone, pretrained=False, num_classes=0, dynamic_img_size=True)
        return TokenMaps(transformer, backbone, strides), [int(transformer.embed_dim)] * len(strides)
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise SettingsError(
            f"backbone '{backbone}': expected features at strides {list(strides)}, found {list(reductions)}"
        )
    network: Any = timm.create_model(
        backbone, pretrained=False, features_only=True, out_indices=[reductions.index(stride) for stride in strides]
    )
    last = getattr(network, "_stage_out_idx", None)  # private: timm's EfficientNets keep the stages behind the last
    if last and hasattr(network, "blocks"):  # feature and compute them; where this attribute is gone, so is the saving
        network.blocks = network.blocks[: max(last)]
    return network, network.feature_info.channels()


def _normalisation(backbone: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and spread of the colours, in [0, 1], by which the backbone's images were normalised."""
    import timm

    published: Any = timm.get_pretrained_cfg(backbone)
    return published.mean, published.std


@functools.cache
def _reductions(backbone: str) -> tuple[int, ...]:
    """Every stride at which timm's network gives features, from a network without memory for its weights.

    Raises:
        SettingsError: there is no such backbone, or it gives no feature maps.
    """
    import timm

    name, _, tag = backbone.partition(".")
    if not timm.is_model(name) or (tag and backbone not in timm.list_pretrained()):
        known = timm.list_pretrained(f"{name}*") if timm.is_model(name) else timm.list_models()
        raise SettingsError(f"unknown backbone '{backbone}'{did_you_mean(backbone, known)}")
    try:
        with torch.device("meta"):
            network: Any = timm.create_model(backbone, pretrained=False, features_only=True)
        return tuple(network.feature_info.reduction())
    except (RuntimeError, AttributeError) as error:
        raise SettingsError(f"backbone '{backbone}' gives no feature maps: {error}") from None
