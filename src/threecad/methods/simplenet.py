"""SimpleNet: a small discriminator learns to tell good features from the same features with a little noise.

Liu, Zhou, Xu, Wang: "SimpleNet: A Simple Network for Image Anomaly Detection and Localization", CVPR 2023.

How it works
    1. A frozen backbone's features at strides 8 and 16 are gathered over 3×3 neighbourhoods, brought to the finer grid
       and pooled to one vector a patch.
    2. A linear adaptor carries the vectors over to the domain of the parts.
    3. Gaussian noise on adapted vectors makes anomalous ones; a discriminator is pushed above 0.5 on the former and
       below -0.5 on the latter.
    4. Minus the discriminator's output is a patch's anomaly score. The highest is the image's score; upsampled and
       smoothed they are the map.

Where each equation is
    (1-4) local features `nets.patches.PatchFeatures` · (5) G `SimpleNet.adaptor` · (6) noise `SimpleNet.losses` · (7) D
    `discriminator` · (8, 9) `truncated_loss` · (10, 11) scores `SimpleNet.forward`

Differences
    from the authors' code
      - The last epoch counts. The code tests after every fourth and keeps the epoch with the best image AUROC on the
        test set, which is known to lift its numbers: training is unstable, and the last epoch may lie well below.
      - Images are resized to 288×288 and not cropped; the code crops 288 out of 329 and loses the border's defects.
      - Masks are compared at `evaluation.size`, one rule for all methods; there at 288 px, where a bilinearly resized
        mask is exactly 1.
      - Vectors are pooled before they are brought to the finer grid, not after: both are linear, along different axes.
      - Maps are not rescaled over the test set, and P-PRO compares masks that are not dilated.
      - Backbones with fewer than 1536 values in a neighbourhood keep them all; nothing is repeated to fill up.
    ours, off in the `paper` preset
      - `standardised`: 0.015 is a noise for the features of WRN-50-2. Other backbones have other scales; those of
        EfficientNet-Lite0 are signed, with a spread of 4 to 7, beside which it would vanish. A statistics phase
        beforehand finds mean and spread of each value on the good images, and `noise` counts in spreads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import GaussianBlur, full_precision, upsample
from threecad.nets.patches import PatchFeatures
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.records import Batch, Prediction
from threecad.settings import BackboneConfig, Size
from threecad.shared_phases import standardisation_phase
from threecad.synthesis import TextureSource

MOST_VALUES = 1536  # of a vector
HIDDEN = 1024  # of the discriminator
MARGIN = 0.5


class SimpleNetConfig(BackboneConfig):
    """SimpleNet's settings. The defaults are the authors'."""

    grid = 16

    image_size: Size = (288, 288)
    """Height and width in pixels that images are resized to; one number means a square."""

    noise: float = Field(default=0.015, gt=0)
    """Standard deviation of the noise that makes adapted features anomalous."""

    standardised: bool = False
    """Bring each feature to mean 0 and spread 1 over the good parts first (ours, not the paper's)."""

    adaptor_rate: float = Field(default=1e-4, gt=0)
    """Rate of the adaptor's AdamW."""

    discriminator_rate: float = Field(default=2e-4, gt=0)
    """Rate of the discriminator's Adam."""

    epochs: int = Field(default=160, ge=1)
    """Passes over the good images: the authors' 40 meta-epochs of 4."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    @classmethod
    def tiny(cls) -> SimpleNetConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64))


class SimpleNet(Detector):
    """Feature-space noise and a discriminator (SimpleNet, "Method")."""

    paper = METHODS.paper("simplenet")
    Config = SimpleNetConfig
    batch = 8
    quick = Preset(
        method={
            "standardised": True,
            "noise": 0.3,
            "adaptor_rate": 5e-4,
            "discriminator_rate": 1e-3,
        },
        training={"steps": 500, "batch": 2, "schedule": "one_cycle"},
    )
    config: SimpleNetConfig

    def __init__(self, config: SimpleNetConfig) -> None:
        super().__init__(config)
        self.patches = PatchFeatures(Pyramid(config.backbone, config.weights, strides=(8, 16)), MOST_VALUES)
        values = self.patches.values
        self.adaptor = nn.Linear(values, values)
        self.discriminator = discriminator(values)
        for layer in [self.adaptor, *self.discriminator]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        self.standardise = Standardisation(values)
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = -D(G(patch)), upsampled and smoothed; score = the highest patch, before either."""
        vectors = self._describe(image)
        patch_scores = -self._discriminate(self.adaptor(vectors.flatten(0, 2))).view(vectors.shape[:3])
        anomaly_map = self.smooth(upsample(patch_scores.unsqueeze(1), image.shape[-2:], align_corners=False))
        return Prediction(anomaly_map, patch_scores.amax(dim=(1, 2)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """Adaptor and discriminator together; before, where vectors are standardised, a statistics phase."""
        if self.config.standardised:
            yield standardisation_phase([self.standardise], lambda image: [self.patches(image)])
        yield GradientPhase(
            "discrimination",
            losses=self.losses,
            trains=[self.adaptor, self.discriminator],
            optimizers=[
                torch.optim.AdamW(self.adaptor.parameters(), lr=self.config.adaptor_rate),
                torch.optim.Adam(self.discriminator.parameters(), lr=self.config.discriminator_rate, weight_decay=1e-5),
            ],
            duration=Epochs(self.config.epochs),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The truncated L1 loss of eq. (9), good and noisy vectors apart; one BatchNorm sees both."""
        good = self.adaptor(self._describe(batch.image).flatten(0, 2)).float()
        noisy = good + self.config.noise * torch.randn_like(good)
        outputs = self._discriminate(torch.cat([good, noisy]))
        good_loss, noisy_loss = truncated_loss(*outputs.chunk(2))
        return {"good": good_loss, "noisy": noisy_loss}

    def _discriminate(self, adapted: Tensor) -> Tensor:
        """D's outputs (N, 1) of adapted vectors (N, D); in bf16 the noise would be lost in the rounding."""
        with full_precision(adapted):
            return self.discriminator(adapted.float())

    def _describe(self, image: Tensor) -> Tensor:
        """Vectors (B, H/8, W/8, D) of the patches."""
        return self.standardise(self.patches(image))


def truncated_loss(good: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """mean max(0, 0.5 - D(good)) and mean max(0, 0.5 + D(noisy)) of the discriminator's outputs (N, 1) (eqs. 8, 9)."""
    return F.relu(MARGIN - good).mean(), F.relu(MARGIN + noisy).mean()


def discriminator(values: int) -> nn.Sequential:
    """D (eq. 7): a two-layer perceptron with BatchNorm over patches, (N, D) -> (N, 1)."""
    return nn.Sequential(
        nn.Linear(values, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, 1, bias=False)
    )
