"""CFRG: a segmenter examines where teacher, student and recovered features disagree.

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
    in_t, in_s `CFRG._features` · (4) `segmentation_loss` · (5) `CFRG.losses`, summed by the training loop

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
      - Textures are drawn uniformly from all pictures. In the code image i gets the i-th picture of the sorted list in
        every epoch, so that most of the 5,640 pictures of DTD are never seen.
      - The student is timm's EfficientNet-b0, whose grid lies on the teacher's. The code's own has TensorFlow's padding
        (1, 3, 7 and 15 px off at strides 2, 4, 8, 16), BatchNorms with eps 1e-3 and momentum 0.01, stochastic depth and
        PyTorch's initialisation. `student = "tf_efficientnet_b0"` with `student_drop_path = 0.125` comes near.
      - The `paper` preset computes in bf16 where the machine has it, else in float32; the code in fp16.
      - Masks are compared at `evaluation.size`, one rule for all methods; image labels come from folders; P-PRO is
        pooled over images, with the paper's own beside it; the last epoch is kept.
    ours, off in the `paper` preset
      - `calibrated`: distances are measured in units of how much they vary where parts are good (`nets.calibration`),
        which statistics passes after the training find out; where parts do not lie still, by how far a patch lies
        from the nearest that good parts have around its place. Map and score are then those of that file's head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from timm.layers import DropPath
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.nets.calibration import PATCH_STRIDE, Calibration, Comparison
from threecad.nets.distillation import cosine_map, flattened_cosine_loss
from threecad.nets.maps import GaussianBlur, cosine_distance, full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.recovery import Recovery
from threecad.records import Batch, Prediction
from threecad.schedules import milestones
from threecad.settings import AUTO, BackboneConfig
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

    student_drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Chance that training skips the student's deepest residual block; it rises linearly from 0 at the first one."""

    recovery: bool = True
    """Keep the recovery branch. Without it (ablation WRC) the map is the segmentation alone."""

    distillation_map: bool = False
    """Without the recovery branch, put the distance of teacher and student in its place in the map."""

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

    recovery_blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6)
    """Residual blocks of the decoder's stages, coarse to fine."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Rate of the optimiser at the schedule's 1."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the good images."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    calibrated: bool = False
    """Measure distances in units of their spread where parts are good, position by position (ours)."""

    ridge: float = Field(default=0.01, gt=0)
    """Share of the mean variance that is added to every variance of the calibration."""

    nearest_patches: int = Field(default=131_072, ge=1)
    """Most patches of good parts that the calibration remembers, 4 bytes a value on disk and in memory; a fit makes no
    room for more than its images have."""

    @model_validator(mode="after")
    def _something_in_the_map(self) -> Self:
        if self.distillation_map and self.recovery:
            raise ValueError("distillation_map takes the place of the recovery branch; set method.recovery = false")
        if not (self.recovery or self.segmentation or self.distillation_map):
            raise ValueError(
                "without recovery and segmentation nothing is left for the map; "
                "keep one of them, or set method.distillation_map = true"
            )
        return self

    def for_images(self, images: int) -> Self:
        """The same with no room for patches that so many images do not have."""
        if self.image_size == AUTO:
            return self
        patches = images * (self.image_size[0] // PATCH_STRIDE) * (self.image_size[1] // PATCH_STRIDE)
        return self.model_copy(update={"nearest_patches": min(self.nearest_patches, patches)})

    @classmethod
    def tiny(cls) -> CFRGConfig:
        return cls(backbone="resnet10t.c3_in1k", student="efficientnet_lite0", weights="random", image_size=(128, 128))


class Features(NamedTuple):
    """What the networks see in a batch of images."""

    teacher: list[Tensor]  # [(B, C_i, H_i, W_i)], fine to coarse
    student: list[Tensor]  # likewise
    recovered: list[Tensor]  # likewise; empty without the recovery branch


class CFRG(Detector):
    """Coarse-to-fine detection with recovery guidance (3CAD, "Method")."""

    paper = METHODS.paper("cfrg")
    Config = CFRGConfig
    batch = 32
    paper_precision: ClassVar[Literal["auto", "float32"]] = "auto"  # the authors' code is mixed-precision
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
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)
        self.calibration = (
            Calibration(
                self.teacher, 2 if config.recovery else 1, self.smooth, config.image_size, config.nearest_patches
            )
            if config.calibrated
            else None
        )

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = Σ_scales upsample(1 - cos(F^t, F^r)) + sigmoid(logits), smoothed; score = its maximum."""
        if self.calibration is not None:
            return self.calibration(*self._compare_and_segment(image))
        features, size = self._features(image), image.shape[-2:]
        parts = []
        if self.recovery is not None:
            parts.append(cosine_map(features.teacher, features.recovered, size))
        if self.config.distillation_map:
            parts.append(cosine_map(features.teacher, features.student, size))
        if self.segmenter is not None:
            parts.append(self.segmenter(self._weighted(features)).sigmoid())
        anomaly_map = self.smooth(torch.stack(parts).sum(dim=0))
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One joint phase of AdamW; then, where the map is calibrated, the phases of statistics."""
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
            ridge = self.config.ridge
            yield from calibration_phases(
                self.calibration, self.teacher, self._compare, self._compare_and_segment, synthesizer, ridge
            )

    def choices(self) -> list[str]:
        """How much of the map the nearest patches got."""
        return [] if self.calibration is None else self.calibration.choices()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_all = L_dis + L_rec + L_bce (eq. 5)."""
        altered = self._features(batch.augmented)
        logits = self.segmenter(self._weighted(altered)) if self.segmenter is not None else None
        normal = self.teacher(batch.image) if self.recovery is not None else []
        with full_precision(batch.image):
            terms = {"distillation": distillation_loss(altered.teacher, altered.student, batch.mask, self.config.push)}
            if self.config.distillation_mean:
                terms["distillation"] = terms["distillation"] / len(altered.teacher)
            if self.recovery is not None:
                terms["recovery"] = recovery_loss(normal, altered.recovered, self.config.recovery_cosine == "image")
            if logits is not None:
                terms["segmentation"] = segmentation_loss(logits, batch.mask)
        return terms

    def _features(self, image: Tensor) -> Features:
        """Teacher, student and recovery, once; serves training and inference."""
        teacher, student = self.teacher(image), self.student(image)
        return Features(teacher, student, self.recovery(teacher) if self.recovery is not None else [])

    def _weighted(self, features: Features) -> list[Tensor]:
        """in_s: the teacher's features, weighted by how far the student's and the recovered ones lie from them."""
        teacher, student, recovered = features
        weighted = [cosine_distance(t, s) * t for t, s in zip(teacher, student, strict=True)]  # in_t = (1 - w_d) F^t_a
        if recovered and self.config.guidance:
            distances = [cosine_distance(t, r) for t, r in zip(teacher, recovered, strict=True)]
            weighted = [distance * w for distance, w in zip(distances, weighted, strict=True)]  # in_s = (1 - w_r) in_t
        return weighted

    def _compare(self, image: Tensor) -> Comparison:
        """What the calibration compares in images."""
        return comparison(self._features(image))

    def _compare_and_segment(self, image: Tensor) -> tuple[Comparison, Tensor]:
        """The same, and the segmented mask (B, 1, H, W) in [0, 1], which is 1 without segmentation."""
        features = self._features(image)
        if self.segmenter is None:
            return comparison(features), image.new_ones(len(image), 1, *image.shape[-2:])
        return comparison(features), self.segmenter(self._weighted(features)).sigmoid()


def comparison(features: Features) -> Comparison:
    """What the calibration compares: the student's features take the place of the recovered without recovery."""
    branches = [branch for branch in (features.recovered, features.student) if branch]
    return Comparison(features.teacher, branches[0], [branch[-1] for branch in branches])


def distillation_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], mask: Tensor, push: bool = True) -> Tensor:
    """L_dis = Σ_i mean[(1 - G) L_i^cos + G (1 - L_i^cos)] (eq. 2); without `push` only its first term.

    Args:
        teacher: F^{t_a}, [(B, C_i, H_i, W_i)].
        student: F^{s_a}, likewise.
        mask: G, (B, 1, H, W) of 0 and 1.
    """
    total = mask.new_zeros(())
    for t, s in zip(teacher, student, strict=True):
        distance = upsample(cosine_distance(t, s), mask.shape[-2:], align_corners=False)
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
        if config.student_drop_path > 0:
            drop_paths(self.pyramid.network, config.student_drop_path)
        self.adapters = nn.ModuleList(
            adapter(in_channels, out_channels, teacher.signed)
            for in_channels, out_channels in zip(self.pyramid.channels, teacher.channels, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """F^s: features [(B, C_i, H_i, W_i)] of the teacher's shapes."""
        return [adapt(features).float() for adapt, features in zip(self.adapters, self.pyramid(image), strict=True)]


def drop_paths(network: nn.Module, most: float) -> None:
    """Let training skip residual blocks of timm's `network` (stochastic depth), with a chance from 0 up to `most`.

    Raises:
        SettingsError: the network has no blocks that can be skipped.
    """
    blocks = [block for block in network.modules() if hasattr(block, "drop_path")]
    if not blocks:
        raise SettingsError("setting 'method.student_drop_path': expected 0, since the student has no residual blocks")
    for index, block in enumerate(blocks):
        block.drop_path = DropPath(most * index / max(len(blocks) - 1, 1))


def adapter(in_channels: int, out_channels: int, signed: bool) -> nn.Sequential:
    """Depthwise 3×3, 1×1, BN, ReLU, 3×3, 1×1 to the teacher's channels, BN, and a ReLU unless those are signed."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, in_channels, 1, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.Identity() if signed else nn.ReLU(inplace=True),
    )


class Segmenter(nn.Module):
    """Four up-blocks from the coarsest weighted features to logits, with skips at the two finer scales."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        widths = [max(coarse // divisor, FLOOR) for divisor in (2, 4, 8, 16)]
        self.up = nn.ModuleList(
            UpBlock(in_channels, width, skip)
            for in_channels, width, skip in zip([coarse, *widths[:-1]], widths, (middle, fine, 0, 0), strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, weighted: Sequence[Tensor]) -> Tensor:
        """Logits (B, 1, H, W) of in_s, [(B, C_i, H/s_i, W/s_i)]."""
        fine, middle, features = weighted
        for up, skip in zip(self.up, (middle, fine, None, None), strict=True):
            features = up(features, skip)
        with full_precision(features):  # bf16 would round close logits to the same value
            return self.head(features.float())


class UpBlock(nn.Module):
    """Transposed 4×4 with stride 2, the skip beside it, then twice 3×3, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        features = self.enlarge(features)
        return self.refine(features if skip is None else torch.cat([features, skip], dim=1))
