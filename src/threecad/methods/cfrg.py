"""CFRG: where teacher, student and recovered features disagree, a segmenter looks closer.

Yang, Xing, Sun, Guo, Ma, Li, Zeng: "3CAD: A Large-Scale Real-World 3C Product Dataset for Unsupervised Anomaly
Detection", AAAI 2025.

How it works
    1. A normal image gets a synthetic anomaly: a foreign texture inside a Perlin mask G.
    2. Distillation (coarse): a student of another architecture learns to agree with the frozen teacher where the image
       is normal and to disagree inside G.
    3. Recovery (guidance): from the teacher's features of the altered image, a bottleneck and a decoder recover those
       of the normal image.
    4. Segmentation (fine): the teacher's features, weighted by both disagreements, are turned into a mask.
    5. The anomaly map is the distance between teacher and recovered features plus the segmented mask, smoothed.

Where each equation is
    (1) `nets.maps.cosine_distance` · (2) `distillation_loss` · (3) `nets.recovery.Recovery` · L_rec `recovery_loss` ·
    in_t, in_s `CFRG._look` · (4) `segmentation_loss` · (5) `CFRG.losses`, summed by the training loop

Differences
    from the paper
      - L_rec is one cosine per image over the flattened features of a scale, as in RD and in the authors' code; the
        paper says "cosine similarity loss". `recovery_cosine = "position"` takes one cosine a position.
      - The student has adapters to the teacher's channels (authors' code); the paper does not say how they meet.
      - One joint stage, as text and code have it; the caption of Fig. 4 speaks of two.
      - Narrow teachers get stages with a least width (`nets.recovery.FLOOR`, `FLOOR` here), and no final ReLU in
        adapters and decoder where the teacher's features are signed.
    from the authors' code
      - L_dis is the sum over scales of eq. (2); the code divides it by 3 (`distillation_mean = true`).
      - AdamW, as the paper says; the code uses Adam with betas (0.5, 0.999) (`optimizer = "adam"`).
      - Image labels come from folders and P-PRO is pooled; the last epoch is kept.
    ours, off in the `paper` preset
      - `calibrated`: after training, a look at the good parts tells how teacher and recovered features differ at each
        position, and differences are measured in units of that (`nets.calibration`). A recovery that is not learnt to
        the end leaves differences on good parts too; so measured, they no longer drown the segmentation, which then
        weights the distance instead of being added to it. What is added is the coarse localisation of both branches,
        measured in units of what altered parts show beside their alteration. The score adds two peaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.calibration import Calibration
from threecad.nets.distillation import cosine_map, flattened_cosine_loss
from threecad.nets.maps import GaussianBlur, cosine_distance, full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.recovery import Recovery
from threecad.records import Batch, Prediction
from threecad.schedules import milestones
from threecad.settings import BackboneConfig
from threecad.shared_phases import calibration_phases
from threecad.synthesis import TextureSource
from threecad.synthesis.blending import TextureSynthesizer

FLOOR = 32
"""Least width of a segmenter stage."""


class CFRGConfig(BackboneConfig):
    """CFRG's settings; `backbone` is the teacher. The defaults are the paper's."""

    grid = 32

    student: str = "efficientnet_b0"
    """timm architecture that learns from random weights; `teacher` takes the teacher's own (ablation WH)."""

    recovery: bool = True
    """Keep the recovery branch. Without it (ablation WRC) the distillation distance takes its place in the map."""

    segmentation: bool = True
    """Keep the segmentation branch. Without it (ablation WS) the map is the recovery distance alone."""

    push: bool = True
    """Push teacher and student apart inside the mask. Without (ablation WP) eq. 2 keeps its (1 - G) term."""

    guidance: bool = True
    """Weight the segmenter's input by the recovery distance. Without (ablation WC) in_s = in_t."""

    distillation_mean: bool = False
    """Average eq. 2 over scales, as the authors' code does, instead of summing."""

    recovery_cosine: Literal["image", "position"] = "image"
    """One cosine per image over the flattened features (RD's form), or one a position."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """The paper's AdamW, or the authors' code's Adam with betas (0.5, 0.999)."""

    recovery_blocks: tuple[int, int, int] = (3, 4, 6)
    """Residual blocks of the decoder's stages, coarse to fine."""

    learning_rate: float = 5e-4
    """Rate of the optimiser at the schedule's 1."""

    epochs: int = 50
    """Passes over the good images."""

    sigma_px: float = 4.0
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    calibrated: bool = False
    """Measure distances in units of their spread where parts are good, position by position (ours)."""

    ridge: float = 0.01
    """Share of the mean variance that is added to every variance of the calibration."""

    @classmethod
    def tiny(cls) -> CFRGConfig:
        return cls(backbone="resnet10t.c3_in1k", student="efficientnet_lite0", weights="random", image_size=(128, 128))


class Look(NamedTuple):
    """Everything that one pass over an image gives."""

    teacher: list[Tensor]  # features [(B, C_i, H_i, W_i)] of the image
    student: list[Tensor]
    recovered: list[Tensor]  # empty without the recovery branch
    logits: Tensor | None  # (B, 1, H, W); None without the segmentation branch

    @property
    def others(self) -> list[list[Tensor]]:
        """What is compared with the teacher: recovered features first, or the student's alone in their place."""
        return [self.recovered, self.student] if self.recovered else [self.student]

    def mask(self, image: Tensor, without: float) -> Tensor:
        """sigmoid(logits), (B, 1, H, W); `without` the segmentation branch, that value everywhere."""
        if self.logits is None:
            return image.new_full((len(image), 1, *image.shape[-2:]), without)
        return self.logits.sigmoid()


class CFRG(Detector):
    """Coarse-to-fine detection with recovery guidance (3CAD, "Method")."""

    paper = METHODS.paper("cfrg")
    Config = CFRGConfig
    batch = 32
    quick = Preset(
        method={"calibrated": True, "student": "resnet18", "recovery_blocks": (2, 2, 2), "learning_rate": 1e-3},
        training={"steps": 300, "batch": 8, "schedule": "one_cycle"},
    )
    config: CFRGConfig

    def __init__(self, config: CFRGConfig) -> None:
        super().__init__(config)
        self.teacher = Pyramid(config.backbone, config.weights)
        self.student = Student(config, self.teacher)
        self.recovery = (
            Recovery(self.teacher.channels, self.teacher.signed, config.recovery_blocks) if config.recovery else None
        )
        self.segmenter = Segmenter(self.teacher.channels) if config.segmentation else None
        self.smooth = GaussianBlur(config.sigma_px)
        self.calibration = (
            Calibration(self.teacher, 2 if config.recovery else 1, self.smooth, config.image_size)
            if config.calibrated
            else None
        )

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = Σ_scales upsample(1 - cos(F^t, F^r)) + sigmoid(logits), smoothed; score = its maximum."""
        if self.calibration is not None:
            return self.calibration(*self._compare(image))
        look = self._look(image)
        distance = cosine_map(look.teacher, look.others[0], image.shape[-2:])
        anomaly_map = self.smooth(distance + look.mask(image, without=0.0))
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One joint phase of AdamW; then, where the map is calibrated, looks at good and at altered parts."""
        trains = [part for part in (self.student, self.recovery, self.segmenter) if part is not None]
        parameters = [parameter for part in trains for parameter in part.parameters()]
        rate = self.config.learning_rate
        synthesizer = TextureSynthesizer(textures)
        yield GradientPhase(
            "joint",
            losses=self.losses,
            trains=trains,
            optimizers=[
                torch.optim.AdamW(parameters, lr=rate, fused=True)
                if self.config.optimizer == "adamw"
                else torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), fused=True)
            ],
            duration=Epochs(self.config.epochs),
            schedule=milestones((0.8, 0.9), 0.2),
            synthesizer=synthesizer,
        )
        if self.calibration is not None:
            yield from calibration_phases(self.calibration, self._compare, synthesizer, self.config.ridge)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_all = L_dis + L_rec + L_bce (eq. 5)."""
        look = self._look(batch.augmented)
        with full_precision(batch.image):
            terms = {"distillation": distillation_loss(look.teacher, look.student, batch.mask, self.config.push)}
            if self.config.distillation_mean:
                terms["distillation"] = terms["distillation"] / len(look.teacher)
            if self.recovery is not None:
                normal = self.teacher(batch.image)
                terms["recovery"] = recovery_loss(normal, look.recovered, self.config.recovery_cosine == "image")
            if look.logits is not None:
                terms["segmentation"] = segmentation_loss(look.logits, batch.mask)
        return terms

    def _look(self, image: Tensor) -> Look:
        """Teacher, student, recovery and segmenter, once; serves training and inference."""
        teacher, student = self.teacher(image), self.student(image)
        recovered = self.recovery(teacher) if self.recovery is not None else []
        if self.segmenter is None:
            return Look(teacher, student, recovered, None)
        weighted = [cosine_distance(t, s) * t for t, s in zip(teacher, student, strict=True)]  # in_t = (1 - w_d) F^t_a
        if recovered and self.config.guidance:
            distances = [cosine_distance(t, r) for t, r in zip(teacher, recovered, strict=True)]
            weighted = [distance * w for distance, w in zip(distances, weighted, strict=True)]  # in_s = (1 - w_r) in_t
        return Look(teacher, student, recovered, self.segmenter(weighted).float())

    def _compare(self, image: Tensor) -> tuple[list[Tensor], list[list[Tensor]], Tensor]:
        """What a calibration measures: the teacher's features, those that should equal them, the segmented mask."""
        look = self._look(image)
        return look.teacher, look.others, look.mask(image, without=1.0)


def distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], mask: Tensor, push: bool = True) -> Tensor:
    """L_dis = Σ_i mean[(1 - G) L_i^cos + G (1 - L_i^cos)] (eq. 2); without `push` only its first term.

    Args:
        teacher: F^{t_a}, [(B, C_i, H_i, W_i)].
        student: F^{s_a}, likewise.
        mask: G, (B, 1, H, W) of 0 and 1.
    """
    total = mask.new_zeros(())
    for t, s in zip(teacher, student, strict=True):
        distance = upsample(cosine_distance(t, s), mask.shape[-2:])
        pull = (1 - mask) * distance
        total = total + (pull + mask * (1 - distance) if push else pull).mean()
    return total


def recovery_loss(normal: Sequence[Tensor], recovered: Sequence[Tensor], flattened: bool = True) -> Tensor:
    """L_rec = Σ_i mean(1 - cos(F_i^{t_n}, F_i^r)): one cosine per image over C·H·W, or one a position."""
    if flattened:
        return flattened_cosine_loss(normal, recovered)
    return torch.stack([cosine_distance(n, r).mean() for n, r in zip(normal, recovered, strict=True)]).sum()


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """L_bce, the binary cross-entropy of sigmoid(logits) with G (eq. 4), mean over pixels."""
    return F.binary_cross_entropy_with_logits(logits, mask)


class Student(nn.Module):
    """Another architecture's pyramid, learnt from random weights, with an adapter a scale to the teacher's channels."""

    def __init__(self, config: CFRGConfig, teacher: Pyramid) -> None:
        super().__init__()
        architecture = config.backbone if config.student == "teacher" else config.student
        self.pyramid = Pyramid(architecture, "random", teacher.strides, trainable=True)
        self.adapters = nn.ModuleList(
            adapter(given, made, teacher.signed)
            for given, made in zip(self.pyramid.channels, teacher.channels, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """F^s: features [(B, C_i, H_i, W_i)] of the teacher's shapes."""
        return [adapt(features).float() for adapt, features in zip(self.adapters, self.pyramid(image), strict=True)]


def adapter(given: int, made: int, signed: bool) -> nn.Sequential:
    """Depthwise 3×3, 1×1, BN, ReLU, 3×3, 1×1 to the teacher's channels, BN, and a ReLU unless those are signed."""
    return nn.Sequential(
        nn.Conv2d(given, given, 3, padding=1, groups=given, bias=False),
        nn.Conv2d(given, given, 1, bias=False),
        nn.BatchNorm2d(given),
        nn.ReLU(inplace=True),
        nn.Conv2d(given, given, 3, padding=1, bias=False),
        nn.Conv2d(given, made, 1, bias=False),
        nn.BatchNorm2d(made),
        nn.Identity() if signed else nn.ReLU(inplace=True),
    )


class Segmenter(nn.Module):
    """Four up-blocks from the coarsest weighted features to logits, with skips at the two finer scales."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        widths = [max(coarse // divisor, FLOOR) for divisor in (2, 4, 8, 16)]
        given = [coarse, *widths]
        self.up = nn.ModuleList(
            UpBlock(given[i], width, skip)
            for i, (width, skip) in enumerate(zip(widths, (middle, fine, 0, 0), strict=True))
        )
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, 1, H, W) of in_s, [(B, C_i, H/s_i, W/s_i)]."""
        fine, middle, made = features
        for up, skip in zip(self.up, (middle, fine, None, None), strict=True):
            made = up(made, skip)
        return self.head(made)


class UpBlock(nn.Module):
    """Transposed 4×4 with stride 2, the skip beside it, then twice 3×3, BN, ReLU."""

    def __init__(self, given: int, made: int, skip: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(given, made, 4, stride=2, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(made + skip, made, 3, padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(inplace=True),
            nn.Conv2d(made, made, 3, padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        features = self.enlarge(features)
        return self.refine(features if skip is None else torch.cat([features, skip], dim=1))
