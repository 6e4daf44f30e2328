"""DRAEM: one network repaints an image as if it were normal, another sees from both pictures what was repainted.

Zavrtanik, Kristan, Skočaj: "DRAEM – A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection",
ICCV 2021.

How it works
    1. Half of the images get a synthetic anomaly: an augmented foreign texture inside a Perlin mask. Some clean images
       are rotated first.
    2. The reconstruction network, an autoencoder without skip connections, gives back the clean image.
    3. The discriminator, a U-Net, sees reconstruction and input side by side and gives the mask.
    4. The anomaly map is the discriminator's probability of an anomaly; the score is its maximum after 21×21 averaging.
    Both networks learn together from random weights; there is no backbone.

Where each equation is
    L_rec = L2 + L_SSIM `DRAEM.losses`, `structural_similarity` · L_seg `focal_loss` · score `DRAEM.forward`

Differences
    from the paper
      - Rates fall to a fifth at 80 % and 90 % of the epochs, as in the official code; the paper says a tenth at 400 and
        600 of 700.
      - Clean images are rotated by up to 90 degrees, as in the official code; the paper says 45.
    from the official code
      - Images are RGB; there BGR. The networks learn from nothing, so only the texture augmenters could tell.
      - Images and textures are resized with antialiasing; the official loader has none (`cv2.resize`). On brushed metal
        from 1024 to 256 px it leaves 1.8 times the grain: a standard deviation of 12.8 against 7.3 grey levels.
      - An epoch shows every image once; there each is drawn with replacement.
      - Masks are compared at `evaluation.size`, one rule for all methods; there a bilinearly resized mask counts where
        it is exactly 1. Image labels come from folders and masks may have any name. The last epoch is kept in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import full_precision
from threecad.records import Batch, Prediction
from threecad.schedules import milestones
from threecad.settings import MethodConfig, Weights
from threecad.synthesis import TextureSource
from threecad.synthesis.blending import TextureSynthesizer

POOL_PX = 21
"""Side of the average pooling, padded with zeros, before the maximum of the map is taken as score."""


class DRAEMConfig(MethodConfig):
    """DRAEM's settings; the defaults are the official code's."""

    grid = 32

    weights: Weights = "random"
    """Not used: both networks learn from random weights."""

    reconstruction_widths: tuple[PositiveInt, ...] = Field(
        default=(128, 256, 512, 1024, 1024), min_length=5, max_length=5
    )
    """Channels of the reconstruction network's encoder at strides 1, 2, 4, 8, 16."""

    discriminator_widths: tuple[PositiveInt, ...] = Field(
        default=(64, 128, 256, 512, 512, 512), min_length=6, max_length=6
    )
    """Channels of the discriminator's encoder at strides 1, 2, 4, 8, 16, 32."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's rate at the schedule's 1."""

    epochs: int = Field(default=700, ge=1)
    """Passes over the good images."""

    @classmethod
    def tiny(cls) -> DRAEMConfig:
        return cls(
            image_size=(64, 64), reconstruction_widths=(8, 8, 16, 16, 16), discriminator_widths=(8, 8, 16, 16, 16, 16)
        )


class DRAEM(Detector):
    """Reconstruction network and discriminator. Images stay in [0, 1]: no normalisation."""

    paper = METHODS.paper("draem")
    Config = DRAEMConfig
    batch = 8
    quick = Preset(
        method={
            "pixels": 128 * 128,
            "reconstruction_widths": (16, 32, 64, 128, 128),
            "discriminator_widths": (16, 32, 64, 128, 128, 128),
            "learning_rate": 2e-3,
        },
        training={"steps": 1000, "batch": 8, "schedule": "one_cycle"},
    )
    config: DRAEMConfig

    def __init__(self, config: DRAEMConfig) -> None:
        super().__init__(config)
        self.reconstruction = Reconstruction(config.reconstruction_widths)
        self.discriminator = Discriminator(config.discriminator_widths)
        _initialise(self)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = the discriminator's softmax; score = its maximum after 21×21 averaging."""
        _, logits = self._outputs(image)
        anomaly_map = logits.softmax(dim=1)[:, 1:]
        smoothed = F.avg_pool2d(anomaly_map, POOL_PX, stride=1, padding=POOL_PX // 2)
        return Prediction(anomaly_map, smoothed.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One phase of Adam for both networks."""
        yield GradientPhase(
            "joint",
            losses=self.losses,
            trains=[self.reconstruction, self.discriminator],
            optimizers=[
                torch.optim.Adam(
                    [*self.reconstruction.parameters(), *self.discriminator.parameters()], lr=self.config.learning_rate
                )
            ],
            duration=Epochs(self.config.epochs),
            schedule=milestones((0.8, 0.9), 0.2),
            synthesizer=TextureSynthesizer(textures, share=0.5, augment=True, rotate_clean=0.3),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L = L2 + L_SSIM + L_seg, with weights of 1."""
        reconstructed, logits = self._outputs(batch.augmented)
        with full_precision(reconstructed):
            return {
                "l2": F.mse_loss(reconstructed, batch.image),
                "ssim": 1 - structural_similarity(reconstructed, batch.image).mean(),
                "focal": focal_loss(logits, batch.mask),
            }

    def _outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, H, W) and the discriminator's logits (B, 2, H, W), once; for training and inference."""
        reconstructed = self.reconstruction(image)
        return reconstructed, self.discriminator(torch.cat([reconstructed, image], dim=1))


def structural_similarity(reconstructed: Tensor, image: Tensor) -> Tensor:
    """SSIM of each pixel and channel, (B, 3, H, W), in an 11×11 Gaussian window of spread 1.5 that sees zeros outside.

    The constants C1 = (0.01 L)² and C2 = (0.03 L)² follow the reconstruction's range L as in the official code: 1, but
    2 where a pixel lies below -0.5, and 255 where one lies above 128.
    """
    channels = image.shape[1]
    offset = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    line = line / line.sum()
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, padding=5, groups=channels)

    x, y = reconstructed, image
    lowest = torch.where(x.amin() < -0.5, -1.0, 0.0)
    highest = torch.where(x.amax() > 128, 255.0, 1.0)
    c1, c2 = (0.01 * (highest - lowest)) ** 2, (0.03 * (highest - lowest)) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """mean of -(1 - p)^γ log p with p = Σ_c t_c softmax_c + smooth, t the mask's class clamped to [smooth, 1 - smooth].

    Args:
        logits: (B, 2, H, W).
        mask: (B, 1, H, W) of 0 and 1.
    """
    target = torch.cat([1 - mask, mask], dim=1).clamp(smooth, 1 - smooth)
    p = (target * logits.softmax(dim=1)).sum(dim=1) + smooth
    return (-((1 - p) ** gamma) * p.log()).mean()


class Reconstruction(nn.Module):
    """Image (B, 3, H, W) to image, through a grid 16 times coarser and nothing beside it."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = _encoder(3, widths)
        fine, second, third = widths[:3]
        in_channels, stages = widths[-1], []
        for out_channels in (third, second, fine, fine):
            stages += [
                _doubled(in_channels, in_channels),
                _convolution(in_channels, in_channels),
                _convolution(in_channels, out_channels),
            ]
            in_channels = out_channels
        self.decoder = nn.Sequential(*stages, nn.Conv2d(in_channels, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction, float32."""
        for block in self.encoder:
            image = block(image)
        *stages, head = self.decoder
        for stage in stages:
            image = stage(image)
        with full_precision(image):  # in bf16 a pixel would be off by up to half a grey level
            return head(image.float())


class Discriminator(nn.Module):
    """A U-Net from reconstruction and input (B, 6, H, W) to logits of normal and anomalous (B, 2, H, W)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = _encoder(6, widths)
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        in_channels = widths[-1]
        skips = widths[-2::-1]  # coarse to fine
        for skip_channels, out_channels in zip(skips, (skips[0], *skips[2:], skips[-1]), strict=True):
            self.up.append(_doubled(in_channels, out_channels))
            self.merge.append(
                nn.Sequential(
                    _convolution(out_channels + skip_channels, out_channels), _convolution(out_channels, out_channels)
                )
            )
            in_channels = out_channels
        self.head = nn.Conv2d(in_channels, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            images = block(images)
            skips.append(images)
        features = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            features = merge(torch.cat([up(features), skips.pop()], dim=1))
        with full_precision(features):  # bf16 would round close logits to the same value
            return self.head(features.float())


def _encoder(in_channels: int, widths: Sequence[int]) -> nn.ModuleList:
    """Blocks of two convolutions; all but the first halve the grid before."""
    blocks = nn.ModuleList()
    for width in widths:
        halve = [nn.MaxPool2d(2)] if len(blocks) else []
        blocks.append(nn.Sequential(*halve, _convolution(in_channels, width), _convolution(width, width)))
        in_channels = width
    return blocks


def _doubled(in_channels: int, out_channels: int) -> nn.Sequential:
    """The grid doubled bilinearly, then a convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), _convolution(in_channels, out_channels)
    )


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02²) for convolutions, N(1, 0.02²) for the gains of BatchNorms."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.02)
