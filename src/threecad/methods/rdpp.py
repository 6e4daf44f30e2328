"""RD++: reverse distillation with projections that hide what is not normal from the bottleneck.

Tien, Nguyen, Tran, Huy, Duong, Nguyen, Truong: "Revisiting Reverse Distillation for Anomaly Detection", CVPR 2023.

How it works
    1. A rectangle of simplex noise is added to each good image.
    2. A projection a scale, between RD's teacher and bottleneck, learns to map the features of the noisy image onto
       those of the clean one, and away from the teacher's noisy features.
    3. Bottleneck and decoder learn, as in RD, to give the teacher's own features back, now from the projected ones.
    4. The map is RD's: cosine distance of the teacher's and the decoded features, summed over scales and smoothed.

Where each equation is
    pseudo-anomalies `RectangleNoise`, `simplex_field` · L_recon `reconstruction_loss` · L_con `contrast_loss` ·
    L_proj and L `RDPP.losses` · L_KD and map `nets.distillation`

Differences
    from the paper and the authors' code
      - There is no optimal-transport term L_SSOT. The code compares a batch of projected features, a cloud of B points,
        with itself in shuffled order; the Sinkhorn divergence of a cloud and its own permutation is zero, and so is its
        gradient. Dropping it changes nothing but the time. L_proj keeps its divisor 1 + 0.01 + 0.1.
      - 200 epochs for every category, and the last one counts. The code stops between 10 and 300 epochs, a number a
        category of MVTec, and reports the epoch that is best on the test set.
      - Gradients of two batches are summed, as in the code, but no half sum crosses into the next epoch.
      - Images are resized with antialiasing, like everywhere in this package; the code's `cv2.resize` has none.
      - Masks are compared at `evaluation.size`, one rule for all methods; there an antialiased bilinear mask counts
        above 0.5. Image labels come from folders, and P-PRO is pooled over images instead of averaged per image.
    kept from the authors' code
      - One fixed noise field whose corner every image gets, with only the rectangle drawn anew: its generator is never
        seeded again. `noise_reseed = true` takes another part of the field for each image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.distillation import cosine_map, flattened_cosine_loss
from threecad.nets.maps import GaussianBlur, cosine_distance, full_precision
from threecad.nets.pyramid import Pyramid
from threecad.nets.recovery import Recovery
from threecad.records import Batch, Prediction
from threecad.settings import BackboneConfig
from threecad.synthesis import TextureSource

PROJECTION_WEIGHT = 0.2  # of L_proj in L
RECONSTRUCTION_WEIGHT, CONTRAST_WEIGHT = 0.01 / 1.11, 0.1 / 1.11  # within L_proj; the missing L_SSOT had 1 / 1.11
MARGIN = 0.5  # cosine below which teacher and projection are apart enough

LEAST_SIDE_PX, MOST_SIDE_PX = 10, 31  # of the noisy rectangle
NOISE_WEIGHT = 0.2
WIDE_FIELD_PX = 64  # of the field that `noise_reseed` takes its parts from; a second of arithmetic, once


class RDPPConfig(BackboneConfig):
    """RD++'s settings; `backbone` is the teacher. The defaults are the authors'."""

    grid = 32

    learning_rate: float = Field(default=5e-3, gt=0)
    """Rate of the bottleneck's and decoder's Adam with betas (0.5, 0.999)."""

    projection_rate: float = Field(default=1e-3, gt=0)
    """Rate of the projections' Adam with betas (0.5, 0.999)."""

    epochs: int = Field(default=200, ge=1)
    """Passes over the good images."""

    noise_reseed: bool = False
    """Give every image another part of the noise, instead of the same one each time as the authors' code does."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    @classmethod
    def tiny(cls) -> RDPPConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64))


class RDPP(Detector):
    """Revisited reverse distillation (RD++, "Method")."""

    paper = METHODS.paper("rdpp")
    Config = RDPPConfig
    batch = 16
    quick = Preset(
        method={"learning_rate": 2e-3},
        training={"steps": 160, "batch": 8, "schedule": "one_cycle"},
    )
    config: RDPPConfig

    def __init__(self, config: RDPPConfig) -> None:
        super().__init__(config)
        self.teacher = Pyramid(config.backbone, config.weights)
        self.projections = nn.ModuleList(projection(channels) for channels in self.teacher.channels)
        self.recovery = Recovery(self.teacher.channels, self.teacher.signed)
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = Σ_scales upsample(1 - cos(teacher, decoded)), smoothed; score = its maximum."""
        features = self.teacher(image)
        decoded = self.recovery(self._project(features))
        anomaly_map = self.smooth(cosine_map(features, decoded, image.shape[-2:]))
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """Projections, bottleneck and decoder together, two batches a step."""
        betas = (0.5, 0.999)
        yield GradientPhase(
            "distillation",
            losses=self.losses,
            trains=[self.projections, self.recovery],
            optimizers=[
                torch.optim.Adam(self.recovery.parameters(), lr=self.config.learning_rate, betas=betas),
                torch.optim.Adam(self.projections.parameters(), lr=self.config.projection_rate, betas=betas),
            ],
            duration=Epochs(self.config.epochs),
            accumulate=2,
            synthesizer=RectangleNoise(self.config.noise_reseed),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L = L_KD + 0.2 L_proj, with L_proj = (0.01 L_recon + 0.1 L_con) / 1.11."""
        clean, noisy = self.teacher(batch.image), self.teacher(batch.augmented)
        projected, projected_noisy = self._project(clean), self._project(noisy)
        reconstruction = reconstruction_loss(projected_noisy, projected)
        contrast = contrast_loss(noisy, projected)
        return {
            "distillation": flattened_cosine_loss(clean, self.recovery(projected)),
            "reconstruction": PROJECTION_WEIGHT * RECONSTRUCTION_WEIGHT * reconstruction,
            "contrast": PROJECTION_WEIGHT * CONTRAST_WEIGHT * contrast,
        }

    def _project(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [project(scale) for project, scale in zip(self.projections, features, strict=True)]


def reconstruction_loss(projected_noisy: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """L_recon = Σ_i mean(1 - cos(P_i^n, P_i)), a cosine a position; both [(B, C_i, H_i, W_i)]."""
    distances = [cosine_distance(n, p).mean() for n, p in zip(projected_noisy, projected, strict=True)]
    return torch.stack(distances).sum()


def contrast_loss(noisy: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """L_con = Σ_i mean(max(0, cos(F_i^n, P_i) - 0.5)), a cosine an image over the flattened scale."""
    with full_precision(noisy[0]):
        cosines = [
            F.cosine_similarity(n.float().flatten(1), p.float().flatten(1))
            for n, p in zip(noisy, projected, strict=True)
        ]
    return torch.stack([F.relu(cosine - MARGIN).mean() for cosine in cosines]).sum()


def projection(channels: int) -> nn.Sequential:
    """3×3 convolutions C → C/2 → C/4 → C/2 → C, each with instance normalisation and a leaky ReLU."""
    widths = [channels, channels // 2, channels // 4, channels // 2, channels]
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(widths):
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        layers += [convolution, nn.InstanceNorm2d(out_channels), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class RectangleNoise:
    """Adds simplex noise, not clipped, inside one rectangle an image; the mask is the rectangle.

    Height and width are drawn from {10 … 31} px, the corner such that one row and one column stay free on each side.
    """

    reseed: bool = False
    """Whether each image gets another part of the noise."""

    source = None
    """No texture."""

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: Generator) -> Batch:
        """`images` (B, 3, H, W) in [0, 1] clean and noisy; deterministic from `generator`."""
        count, _, height, width = images.shape
        (rows, row_inside), (columns, column_inside) = (self._axis(count, side, generator) for side in (height, width))
        field = simplex_field(WIDE_FIELD_PX if self.reseed else MOST_SIDE_PX)
        noise = field[:, rows.unsqueeze(2), columns.unsqueeze(1)].transpose(0, 1)
        mask = (row_inside.unsqueeze(2) & column_inside.unsqueeze(1)).unsqueeze(1).float()
        augmented = images + (NOISE_WEIGHT * mask * noise).to(images.device)
        return Batch(images, augmented, mask.to(images.device))

    def _axis(self, count: int, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Of each pixel along one axis: its place in the field, and whether it is inside the rectangle; (B, side)."""
        size, corner, origin = torch.rand(3, count, 1, generator=generator, device=generator.device).cpu()
        most = min(MOST_SIDE_PX, side - 2)
        size = _whole(size, min(LEAST_SIDE_PX, most), torch.tensor(most))
        within = torch.arange(side) - _whole(corner, 1, side - size - 1)
        first = _whole(origin, 0, torch.tensor(WIDE_FIELD_PX - MOST_SIDE_PX)) if self.reseed else 0
        return first + within.clamp(0, MOST_SIDE_PX - 1), (within >= 0) & (within < size)


def _whole(draw: Tensor, least: int, most: Tensor) -> Tensor:
    """Whole numbers from `least` to `most`, both included, from draws in [0, 1)."""
    return least + (draw * (most - least + 1)).long()


@cache
def simplex_field(side: int) -> Tensor:
    """OpenSimplex noise (3, side, side), the same at each call: six octaves, wavelengths 32 … 1 px, weights 0.6^k."""
    from opensimplex import OpenSimplex

    simplex = OpenSimplex(seed=0)
    channel, pixel = np.arange(3.0), np.arange(float(side))
    octaves = [
        0.6**octave * simplex.noise3array(pixel / wavelength, pixel / wavelength, channel / wavelength)
        for octave, wavelength in enumerate((32, 16, 8, 4, 2, 1))
    ]
    return torch.from_numpy(np.sum(octaves, axis=0)).float()
