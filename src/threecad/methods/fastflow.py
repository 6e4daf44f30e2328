"""FastFlow: a normalising flow a scale turns good features into white noise; what stays unlikely is the defect.

Yu, Zheng, Wang, Li, Wu, Zhao, Wu: "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
arXiv 2111.07677, 2021.

How it works
    1. A frozen backbone's features at strides 4, 8, 16 are layer-normalised, each scale by itself.
    2. Eight invertible steps a scale, fully convolutional, map them to z of the same shape: half of the channels
       decides, through a small network, how the other half is scaled and shifted; then channels are permuted.
    3. Trained on good images, z is standard normal, and the likelihood of the features is that of z times the map's
       volume change.
    4. A position's energy is the mean over channels of z²/2. The map is minus its exponential, averaged over scales;
       its maximum is the score.

Where each equation is
    (1) likelihood, (2) loss `negative_log_likelihood` · affine coupling `Flow`, on FrEIA's `AllInOneBlock` · (3) map
    `likelihood_map`, or `energy_map`

Differences
    from the paper (no official code exists; the 3CAD paper ran anomalib)
      - Features are layer-normalised over (C, H, W) with learnt scale and shift, as in every implementation; the paper
        does not say it, and without it training fails.
      - 3×3 and 1×1 steps alternate, anomalib's present default; the paper uses 3×3 only for its ResNet-18
        (`conv3x3_only = true`). Of the paper's backbones, those with a feature pyramid.
    from anomalib
      - The last epoch counts. anomalib stops when pixel AUROC on the *test* images no longer rises, and its `Folder`
        takes half of the test images for that.
      - The map -exp(-energy) lies in [-1, 0] and reaches 0 for every strong anomaly alike; `exponent = false` gives the
        energy itself, without ties.
      - The flow runs in float32, whatever the precision of the backbone: it is a density, and FrEIA permutes by a
        convolution that would round z at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from FrEIA.modules import AllInOneBlock
from pydantic import Field
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.records import Batch, Prediction
from threecad.settings import BackboneConfig
from threecad.synthesis import TextureSource


class FastFlowConfig(BackboneConfig):
    """FastFlow's settings. The defaults are anomalib's, which are the paper's but for `conv3x3_only`."""

    grid = 16

    backbone: str = "resnet18.tv_in1k"
    """Full timm tag (the paper's large one: `wide_resnet50_2.tv_in1k`), or `embedded`."""

    flow_steps: int = Field(default=8, ge=1)
    """Invertible steps a scale."""

    conv3x3_only: bool = False
    """Convolve 3×3 in every step, as the paper does for its ResNet-18, instead of 3×3 and 1×1 in turn."""

    hidden_ratio: float = Field(default=1.0, gt=0)
    """Hidden channels of a step's small network over its input channels."""

    exponent: bool = True
    """Map -exp(-energy), the paper's; else the energy, in which strong anomalies do not tie."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Rate of Adam."""

    weight_decay: float = Field(default=1e-5, ge=0)
    """Of Adam."""

    epochs: int = Field(default=500, ge=1)
    """Passes over the good images."""

    @classmethod
    def tiny(cls) -> FastFlowConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64), flow_steps=2)


class FastFlow(Detector):
    """Two-dimensional normalising flows on a feature pyramid (FastFlow, "Methodology")."""

    paper = METHODS.paper("fastflow")
    Config = FastFlowConfig
    batch = 32
    quick = Preset(
        training={"steps": 300, "batch": 8, "schedule": "one_cycle"},
    )
    config: FastFlowConfig

    def __init__(self, config: FastFlowConfig) -> None:
        super().__init__(config)
        self.pyramid = Pyramid(config.backbone, config.weights)
        shapes = [
            (channels, *(side // stride for side in config.image_size))
            for channels, stride in zip(self.pyramid.channels, self.pyramid.strides, strict=True)
        ]
        self.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
        kernels = [3 if config.conv3x3_only or step % 2 == 0 else 1 for step in range(config.flow_steps)]
        self.flows = nn.ModuleList(Flow(shape, kernels, config.hidden_ratio) for shape in shapes)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = the mean over scales of -exp(-energy), or of the energy; score = its maximum."""
        latents = [z for z, _ in self._transform(image)]
        draw = likelihood_map if self.config.exponent else energy_map
        anomaly_map = draw(latents, image.shape[-2:])
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """All scales together."""
        parts = nn.ModuleList([self.norms, self.flows])
        yield GradientPhase(
            "flow",
            losses=self.losses,
            trains=[self.norms, self.flows],
            optimizers=[
                torch.optim.Adam(
                    [parameter for parameter in parts.parameters() if parameter.requires_grad],
                    lr=self.config.learning_rate,
                    weight_decay=self.config.weight_decay,
                )
            ],
            duration=Epochs(self.config.epochs),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood of each scale's features, up to a constant (eq. 2)."""
        strides = self.pyramid.strides
        return {
            f"stride_{stride}": negative_log_likelihood(z, log_det)
            for stride, (z, log_det) in zip(strides, self._transform(batch.image), strict=True)
        }

    def _transform(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """z (B, C, H/s, W/s) of each scale, and log |det ∂z/∂features| (B,)."""
        pyramid = self.pyramid(image)
        with full_precision(image):
            return [flow(norm(features)) for flow, norm, features in zip(self.flows, self.norms, pyramid, strict=True)]


def negative_log_likelihood(z: Tensor, log_det: Tensor) -> Tensor:
    """-log p = mean over the batch of Σ_CHW z²/2 - log |det|, without the normal density's constant (eqs. 1, 2)."""
    return (0.5 * z.square().sum(dim=(1, 2, 3)) - log_det).mean()


def energy_map(latents: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Mean over scales of upsampled mean_c z²/2: [(B, C_i, H_i, W_i)] -> (B, 1, H, W), at least 0."""
    energies = [upsample(0.5 * z.square().mean(dim=1, keepdim=True), size, align_corners=False) for z in latents]
    return torch.stack(energies).mean(dim=0)


def likelihood_map(latents: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Mean over scales of upsampled -exp(-mean_c z²/2): [(B, C_i, H_i, W_i)] -> (B, 1, H, W) in [-1, 0]."""
    likelihoods = [
        upsample(-torch.exp(-0.5 * z.square().mean(dim=1, keepdim=True)), size, align_corners=False) for z in latents
    ]
    return torch.stack(likelihoods).mean(dim=0)


class Flow(nn.Module):
    """Invertible steps of one scale.

    A step keeps the first half a of the channels, and takes from a small network s, t of it:
    (a, b) -> (a, b · exp(2 tanh(0.1 s)) + 0.1 t), then a scale (1 at the start) and a shift a channel, then a fixed
    random permutation of the channels.

    Args:
        shape: (C, H, W) of the features.
        kernels: side of the small network's convolutions in each step.
        hidden_ratio: its hidden channels over its input channels.
    """

    def __init__(self, shape: tuple[int, ...], kernels: Sequence[int], hidden_ratio: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            AllInOneBlock([shape], subnet_constructor=coupling_network(kernel, hidden_ratio)) for kernel in kernels
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, C, H, W) of features (B, C, H, W), and log |det ∂z/∂features| (B,)."""
        log_det = features.new_zeros(features.shape[0])
        for step in self.steps:
            (features,), change = step((features,))
            log_det = log_det + change
        return features, log_det


def coupling_network(kernel: int, hidden_ratio: float) -> Callable[[int, int], nn.Sequential]:
    """Builder of a step's small network: convolution, ReLU, convolution, zero-padded to the same size."""

    def build(in_channels: int, out_channels: int) -> nn.Sequential:
        hidden = max(1, int(in_channels * hidden_ratio))
        return nn.Sequential(
            nn.Conv2d(in_channels, hidden, kernel, padding="same"),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, kernel, padding="same"),
        )

    return build
