"""DeSTSeg: a student denoises what its teacher sees, and a segmenter learns where the two disagree.

Zhang, Li, Li, Huang, Shan, Chen: "DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection",
CVPR 2023.

How it works
    1. Every image gets a synthetic anomaly: a foreign texture inside a Perlin mask.
    2. First phase: an encoder and decoder without skip connections, the student, learns from the altered image the
       features that the frozen teacher gives of the normal one.
    3. Second phase: the student rests. Where the normalised features of both disagree on the altered image, residual
       blocks and an atrous spatial pyramid learn the mask.
    4. The anomaly map is the segmented mask; the score is the mean of its 100 largest pixels.

Where each equation is
    student and its loss `Student`, `denoising_loss` · similarity `similarity` · segmentation network `Segmenter` ·
    its losses `focal_loss` and an L1 in `DeSTSeg.segmentation_losses` · score `DeSTSeg.forward`

Differences
    from the paper: none known.
    from the official code
      - No rotation of training images: the official code chooses one for each category of MVTec-AD by hand.
      - The focal loss is computed from logits, which is the same number without the clamp of a logarithm.
      - In training, the mask is sampled at the segmenter's grid.
      - Masks are compared at `evaluation.size`, one rule for all methods; there an antialiased bilinear mask counts
        above 0.5. Image labels come from folders, and P-PRO is pooled over images.
      - Other teachers than ResNet-18: the student keeps its own architecture and gets a 1×1 head at each scale where
        the channels differ, or where the teacher's features can be negative.
    kept from the official code
      - The student's loss sums over the images of a batch, so that the batch scales its rate; with several devices, the
        share of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from threecad.detector import Detector, GradientPhase, Phase, Preset, Steps
from threecad.methods import METHODS
from threecad.nets.maps import cosine_distance, full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.records import Batch, Prediction
from threecad.settings import EMBEDDED_BACKBONE, BackboneConfig
from threecad.synthesis import TextureSource
from threecad.synthesis.blending import TextureSynthesizer

STRIDES = (4, 8, 16)


class DeSTSegConfig(BackboneConfig):
    """DeSTSeg's settings; `backbone` is the teacher. The defaults are the paper's."""

    grid = 32

    backbone: str = "resnet18.tv_in1k"
    """Full timm tag; `embedded` or `embedded-vit` for one whose weights a package of the index carries."""

    student: str = "resnet18.tv_in1k"
    """timm architecture of the student's encoder, learnt from random weights."""

    width: int = Field(default=256, ge=1)
    """Channels inside the segmentation network."""

    dilations: tuple[PositiveInt, ...] = Field(default=(6, 12, 18), min_length=1)
    """Dilations of the atrous spatial pyramid."""

    student_steps: int = Field(default=1000, ge=1)
    """Optimiser steps of the first phase."""

    segmenter_steps: int = Field(default=4000, ge=1)
    """Optimiser steps of the second phase."""

    student_rate: float = Field(default=0.4, gt=0)
    """SGD's rate for the student; its loss grows with the batch."""

    blocks_rate: float = Field(default=0.1, gt=0)
    """SGD's rate for the segmentation network's residual blocks."""

    head_rate: float = Field(default=0.01, gt=0)
    """SGD's rate for the segmentation network's head."""

    top_pixels: int = Field(default=100, ge=1)
    """How many of the map's largest pixels the score averages."""

    @classmethod
    def tiny(cls) -> DeSTSegConfig:
        return cls(
            backbone="resnet10t.c3_in1k",
            student="test_efficientnet.r160_in1k",
            weights="random",
            image_size=(64, 64),
            width=16,
        )


class DeSTSeg(Detector):
    """A denoising student, then a segmentation network."""

    paper = METHODS.paper("destseg")
    Config = DeSTSegConfig
    batch = 32
    quick = Preset(
        method={"student": EMBEDDED_BACKBONE, "width": 32, "student_steps": 200, "segmenter_steps": 200},
        training={"batch": 8, "schedule": "one_cycle"},
    )
    config: DeSTSegConfig

    def __init__(self, config: DeSTSegConfig) -> None:
        super().__init__(config)
        self.teacher = Pyramid(config.backbone, config.weights, STRIDES)
        self.student = Student(config.student, self.teacher)
        self.segmenter = Segmenter(sum(self.teacher.channels), config.width, config.dilations)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = upsample sigmoid(logits); score = mean of its largest pixels."""
        anomaly_map = upsample(self._segment(image).sigmoid(), image.shape[-2:], align_corners=False)
        pixels = anomaly_map.flatten(1)
        top = pixels.topk(min(self.config.top_pixels, pixels.shape[1]), dim=1).values
        return Prediction(anomaly_map, top.mean(dim=1))

    @property
    def least_batch(self) -> int:
        """2: the atrous pyramid normalises each channel's mean over the image, of which one image has only one."""
        return 2

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """SGD for the student, then for the segmentation network, both counted in steps."""
        config, synthesizer = self.config, TextureSynthesizer(textures)
        yield GradientPhase(
            "student",
            losses=self.student_losses,
            trains=[self.student],
            optimizers=[_sgd([{"params": list(self.student.parameters()), "lr": config.student_rate}])],
            duration=Steps(config.student_steps),
            synthesizer=synthesizer,
        )
        blocks, head = self.segmenter.blocks, self.segmenter.head
        yield GradientPhase(
            "segmenter",
            losses=self.segmentation_losses,
            trains=[self.segmenter],
            optimizers=[
                _sgd(
                    [
                        {"params": list(blocks.parameters()), "lr": config.blocks_rate},
                        {"params": list(head.parameters()), "lr": config.head_rate},
                    ]
                )
            ],
            duration=Steps(config.segmenter_steps),
            synthesizer=synthesizer,
        )

    def student_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The student, of the altered image, against the teacher, of the normal one."""
        return {"denoising": denoising_loss(self.teacher(batch.image), self.student(batch.augmented))}

    def segmentation_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Focal and L1 loss of the segmented mask."""
        logits = self._segment(batch.augmented)
        # Half a pixel of the finer grid: the mask's mean there, cut at one half.
        mask = (upsample(batch.mask, logits.shape[-2:], align_corners=False) >= 0.5).float()
        with full_precision(logits):
            return {"focal": focal_loss(logits, mask), "l1": F.l1_loss(logits.sigmoid(), mask)}

    def _segment(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H/4, W/4) of what is anomalous."""
        return self.segmenter(similarity(self.teacher(image), self.student(image)))


def _sgd(groups: list[dict[str, object]]) -> torch.optim.SGD:
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)


def denoising_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Σ over scales and images of the mean over positions of 1 - cos(F^t, F^s): a batch twice as large doubles it.

    Args:
        teacher: features [(B, C_i, H_i, W_i)] of the normal images.
        student: features of the altered ones, likewise.
    """
    per_scale = [cosine_distance(t, s).mean(dim=(1, 2, 3)).sum() for t, s in zip(teacher, student, strict=True)]
    return torch.stack(per_scale).sum()


def similarity(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """-F^t ⊙ F^s, both of length 1 over channels, of all scales at the finest grid: (B, ΣC_i, H_1, W_1)."""
    size = teacher[0].shape[-2:]
    with full_precision(teacher[0]):
        products = [-F.normalize(t.float()) * F.normalize(s.float()) for t, s in zip(teacher, student, strict=True)]
        return torch.cat([upsample(product, size, align_corners=False) for product in products], dim=1)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 4.0) -> Tensor:
    """mean of -(1 - p)^γ log p, p being the probability given to what `mask` (B, 1, H, W) says."""
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    missed = torch.where(mask > 0.5, -logits, logits).sigmoid()
    return (missed**gamma * entropy).mean()


class Student(nn.Module):
    """An encoder to stride 32 and a decoder back to stride 4, with nothing between them: images in, features out."""

    def __init__(self, architecture: str, teacher: Pyramid) -> None:
        super().__init__()
        self.encoder = Pyramid(architecture, "random", (*STRIDES, 2 * STRIDES[-1]), trainable=True)
        *widths, deepest = self.encoder.channels
        self.start = nn.Sequential(BasicBlock(deepest, deepest), BasicBlock(deepest, deepest))
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        in_channels = deepest
        for width, channels in zip(reversed(widths), reversed(teacher.channels), strict=True):
            self.stages.append(nn.Sequential(BasicBlock(in_channels, width), BasicBlock(width, width)))
            alike = width == channels and not teacher.signed
            self.heads.append(nn.Identity() if alike else nn.Conv2d(width, channels, 1))
            in_channels = width
        _initialise(self.start, self.stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features fine to coarse, [(B, C_i, H_i, W_i)] of the teacher's shapes, float32."""
        decoded = self.start(self.encoder(image)[-1])
        features = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            size = [2 * side for side in decoded.shape[-2:]]
            decoded = stage(upsample(decoded, size, align_corners=False))
            features.append(head(decoded).float())
        return features[::-1]


class BasicBlock(nn.Module):
    """ResNet's basic block: twice 3×3 and BatchNorm, and a 1×1 shortcut where the channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.branch(features) + self.shortcut(features))


class Segmenter(nn.Module):
    """Two residual blocks and a head of an atrous spatial pyramid: similarities (B, C, h, w) to logits (B, 1, h, w)."""

    def __init__(self, in_channels: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(BasicBlock(in_channels, width), BasicBlock(width, width))
        self.head = nn.Sequential(
            AtrousPyramid(width, dilations), _convolution(width, width, 3, padding=1), nn.Conv2d(width, 1, 1)
        )
        _initialise(self.blocks)

    def forward(self, similarities: Tensor) -> Tensor:
        *pyramid, last = self.head
        features = self.blocks(similarities)
        for part in pyramid:
            features = part(features)
        with full_precision(features):  # bf16 would round close logits to the same value
            return last(features.float())


class AtrousPyramid(nn.Module):
    """The mean over the image beside dilated 3×3 convolutions, joined by another one."""

    def __init__(self, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), _convolution(width, width, 1))
        self.dilated = nn.ModuleList(
            _convolution(width, width, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.join = _convolution((1 + len(dilations)) * width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features).expand_as(features)
        return self.join(torch.cat([mean, *(branch(features) for branch in self.dilated)], dim=1))


def _convolution(in_channels: int, out_channels: int, side: int, padding: int = 0, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, side, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _initialise(*modules: nn.Module) -> None:
    """Kaiming normal, fan out, for convolutions."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
