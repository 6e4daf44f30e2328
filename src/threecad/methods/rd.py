"""RD: a student decodes the teacher's features from a small embedding, and fails where the image is not normal.

Deng, Li: "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022.

How it works
    1. A frozen teacher's features at strides 4, 8, 16 are fused and squeezed into a one-class embedding at stride 32.
    2. A mirrored student decodes from it, coarse to fine, features of the teacher's shapes.
    3. Both learn on good images to agree with the teacher; what the embedding cannot carry is not decoded.
    4. The map is the cosine distance of teacher and student, summed over scales and smoothed; its maximum is the score.

Where each equation is
    E, φ, D `nets.recovery.Recovery` · (1) `nets.maps.cosine_distance` · (2) L_KD
    `nets.distillation.flattened_cosine_loss` · (3) S_AL `nets.distillation.cosine_map`

Differences
    from the paper
      - L_KD takes one cosine an image over the flattened features of a scale, as the authors' code does; eq. (2)
        averages a cosine a position. The map is per position in both.
    from the authors' code
      - Its bottleneck declares a 1×1 convolution to 2048 channels and its BatchNorm (8,392,704 parameters) that take no
        part in anything; they are left out.
      - Masks are compared at `evaluation.size`, one rule for all methods; there an antialiased bilinear mask counts
        above 0.5. Image labels come from folders, and P-PRO is pooled over images instead of averaged per image.
    ours
      - Narrow teachers get stages with a least width, and no final ReLU where their features are signed
        (`nets.recovery`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.distillation import cosine_map, flattened_cosine_loss
from threecad.nets.maps import GaussianBlur
from threecad.nets.pyramid import Pyramid
from threecad.nets.recovery import Recovery
from threecad.records import Batch, Prediction
from threecad.settings import BackboneConfig
from threecad.synthesis import TextureSource


class RDConfig(BackboneConfig):
    """RD's settings; `backbone` is the teacher. The defaults are the authors'."""

    grid = 32

    learning_rate: float = Field(default=5e-3, gt=0)
    """Rate of Adam with betas (0.5, 0.999)."""

    epochs: int = Field(default=200, ge=1)
    """Passes over the good images."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    @classmethod
    def tiny(cls) -> RDConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64))


class RD(Detector):
    """Reverse distillation (RD, "Our approach")."""

    paper = METHODS.paper("rd")
    Config = RDConfig
    batch = 16
    quick = Preset(
        method={"learning_rate": 2e-3},
        training={"steps": 500, "batch": 8, "schedule": "one_cycle"},
    )
    config: RDConfig

    def __init__(self, config: RDConfig) -> None:
        super().__init__(config)
        self.teacher = Pyramid(config.backbone, config.weights)
        self.recovery = Recovery(self.teacher.channels, self.teacher.signed)
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = Σ_scales upsample(1 - cos(F^E, F^D)), smoothed; score = its maximum."""
        features = self.teacher(image)
        anomaly_map = self.smooth(cosine_map(features, self.recovery(features), image.shape[-2:]))
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """Bottleneck and decoder together."""
        yield GradientPhase(
            "distillation",
            losses=self.losses,
            trains=[self.recovery],
            optimizers=[
                torch.optim.Adam(self.recovery.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999)),
            ],
            duration=Epochs(self.config.epochs),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_KD (eq. 2)."""
        features = self.teacher(batch.image)
        return {"distillation": flattened_cosine_loss(features, self.recovery(features))}
