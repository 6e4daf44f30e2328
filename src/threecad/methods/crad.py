"""CRAD: features are reconstructed from learnt grids that are read at continuous coordinates.

Lee, Kim, Park, Woo, Ko: "Continuous Memory Representation for Anomaly Detection", ECCV 2024.

How it works
    1. A frozen backbone's features at strides 8 and 16 are brought to stride 8: f.
    2. Each position is turned into a coordinate of a small local grid, each image into one of a global grid, and both
       grids are read there by bilinear interpolation. What is read lies between what was learnt from normal images.
    3. Inverted bottlenecks turn both readings into a reconstruction r.
    4. Refinement: r' = s f + (1 - s) r, with s near 1 where r is close to f in direction and length.
    5. The anomaly map is the length of r' - f at each position, averaged over 21×21 pixels.
    One model serves all categories; no category label is used anywhere.

Where each idea is
    continuous memory `Memory` · fusion `Bottleneck`, `CRAD.fuse` · refinement `refine` · loss `CRAD.losses` ·
    score `CRAD.forward`

Differences
    from the paper: none known.
    from the official code
      - Padding of the backbone's strided convolutions as in UniAD's file.
      - 64 images a step, as on the official 4 GPUs of 16, and BatchNorm over all of them; the official one sees the 16
        of its GPU. `training.batch = 16` takes those statistics and four times the steps.
      - The seed takes effect (the official seed 0 counts as none).
      - The last epoch is kept, not the best on the test set; an AUROC below 0.5 is not turned around.
      - Masks are compared at `evaluation.size`, one rule for all methods; there at 224 px.
      - Image labels come from folders.
      - Any size and any backbone: the official code fixes 432 channels and an upsampling of 8.
    kept from the official code
      - The rates fall after 41 of 50 epochs: its schedule is stepped after the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.records import Batch, Prediction
from threecad.schedules import milestones
from threecad.settings import BackboneConfig, Size
from threecad.synthesis import TextureSource

STRIDES = (8, 16)
SMOOTH_PX, POOL_PX = 21, 32
"""Sides of the average pooling that makes the map, and of the one before its maximum is taken as score."""


class CRADConfig(BackboneConfig):
    """CRAD's settings; the defaults are the paper's full model."""

    grid = 16

    image_size: Size = (224, 224)
    """Height and width in pixels that images are resized to; one number means a square."""

    backbone: str = "tf_efficientnet_b4.aa_in1k"
    """Full timm tag; `embedded` or `embedded-vit` for one whose weights a package of the index carries."""

    expansion: int = Field(default=4, ge=1)
    """Channels inside a bottleneck for each channel of the features; 1 gives the paper's CRAD-S."""

    bottlenecks: int = Field(default=11, ge=1)
    """Inverted bottlenecks between the readings and the reconstruction."""

    local_grid: int = Field(default=8, ge=1)
    """Rows and columns of the grid that is read at each position."""

    global_grid: int = Field(default=4, ge=1)
    """Rows and columns of the grid that is read once an image."""

    jitter: float = Field(default=0.05, ge=0)
    """Spread of the noise on local coordinates, in half of the training steps; the grid spans -1 to 1."""

    memory_rate: float = Field(default=0.1, gt=0)
    """AdamW's rate for the two grids."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's rate for everything else."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the good images of all categories."""

    @classmethod
    def tiny(cls) -> CRADConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64), expansion=1, bottlenecks=1)


class CRAD(Detector):
    """Reconstruction from continuous memories."""

    paper = METHODS.paper("crad")
    Config = CRADConfig
    scope = "dataset"
    batch = 64
    quick = Preset(method={"expansion": 1}, training={"steps": 600, "batch": 8, "schedule": "one_cycle"})
    config: CRADConfig

    def __init__(self, config: CRADConfig) -> None:
        super().__init__(config)
        self.backbone = Pyramid(config.backbone, config.weights, STRIDES)
        channels = sum(self.backbone.channels)
        height, width = config.image_size
        self.memory = Memory(
            (channels, height // STRIDES[0], width // STRIDES[0]), config.local_grid, config.global_grid
        )
        self.locate_local = _coordinates(channels)
        self.locate_whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_coordinates(channels))
        hidden = config.expansion * channels
        self.fuse = nn.Sequential(
            *(Bottleneck(2 * channels, hidden) for _ in range(config.bottlenecks)),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
        )
        _initialise(self.locate_local, self.locate_whole, self.fuse)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = 21×21 mean of upsample ‖r' - f‖₂; score = its maximum after 32×32 average pooling."""
        features = self._features(image)
        refined = refine(self._reconstruct(features), features)
        with full_precision(features):
            distance = torch.linalg.vector_norm(refined - features, dim=1, keepdim=True)
        anomaly_map = F.avg_pool2d(upsample(distance, image.shape[-2:]), SMOOTH_PX, stride=1, padding=SMOOTH_PX // 2)
        return Prediction(anomaly_map, F.avg_pool2d(anomaly_map, POOL_PX, stride=1).amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One phase of AdamW with a rate of their own for the grids; no synthetic anomalies."""
        others = [self.locate_local, self.locate_whole, self.fuse]
        yield GradientPhase(
            "reconstruction",
            losses=self.losses,
            trains=[self.memory, *others],
            optimizers=[
                torch.optim.AdamW(
                    [
                        {"params": list(self.memory.parameters()), "lr": self.config.memory_rate},
                        {
                            "params": [parameter for part in others for parameter in part.parameters()],
                            "lr": self.config.learning_rate,
                        },
                    ],
                    weight_decay=0.01,
                )
            ],
            duration=Epochs(self.config.epochs),
            schedule=milestones((0.82,), 0.1),
            clip_norm=0.1,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L = mean (r' - f)², on the refined reconstruction."""
        features = self._features(batch.image)
        refined = refine(self._reconstruct(features, jitter=self.config.jitter), features)
        with full_precision(features):
            return {"reconstruction": F.mse_loss(refined, features)}

    def _features(self, image: Tensor) -> Tensor:
        """f: features of both strides at the finer one's grid, (B, C, H/8, W/8)."""
        features = self.backbone(image)
        size = features[0].shape[-2:]
        return torch.cat([upsample(f, size) for f in features], dim=1)

    def _reconstruct(self, features: Tensor, jitter: float = 0.0) -> Tensor:
        """r of `features`, both (B, C, h, w); the coordinates move by N(0, jitter²) in half of the calls."""
        local = self.locate_local(features).float()
        if jitter > 0:
            half_of_the_time = (torch.rand((), device=local.device) < 0.5).float()
            local = local + half_of_the_time * jitter * torch.randn_like(local)
        return self.fuse(self.memory(local, self.locate_whole(features).float())).float()


def refine(reconstructed: Tensor, features: Tensor) -> Tensor:
    """r' = s f + (1 - s) r, with s = 0.3 m + 0.7 c at each position.

    c is the cosine of r and f over channels; m is 1, but 0 where the mean over channels of (r - f)² exceeds 10. So an r
    that is f times a positive number is refined to f itself, unless it is far away.

    Args:
        reconstructed: r, (B, C, h, w).
        features: f, likewise.
    """
    with full_precision(features):
        r, f = reconstructed.float(), features.float()
        cosine = F.cosine_similarity(r, f, dim=1).unsqueeze(1)
        near = 1 - (0.05 * (r - f).square().mean(dim=1, keepdim=True)).clamp(0, 1).round()
        similarity = 0.3 * near + 0.7 * cosine
        return similarity * f + (1 - similarity) * r


class Memory(nn.Module):
    """Two grids of learnt features that are read at continuous coordinates in (-1, 1).

    Args:
        shape: channels, rows and columns of the features.
        local: rows and columns of the grid whose cells hold the features of one position.
        whole: rows and columns of the grid whose cells hold those of a whole image.
    """

    def __init__(self, shape: tuple[int, int, int], local: int, whole: int) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape
        self.local = nn.Parameter(torch.empty(1, channels, local, local))
        self.whole = nn.Parameter(torch.empty(1, channels * height * width, whole, whole))
        nn.init.xavier_normal_(self.local)
        nn.init.xavier_normal_(self.whole)

    def forward(self, local: Tensor, whole: Tensor) -> Tensor:
        """Both readings side by side, global first: (B, 2C, h, w).

        Args:
            local: (B, 2, h, w), a coordinate a position.
            whole: (B, 2, 1, 1), a coordinate an image.
        """
        whole = _read(self.whole, whole).flatten(1).unflatten(1, self.shape)
        return torch.cat([whole, _read(self.local, local)], dim=1)


def _read(grid: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear readings (B, C, h, w) of a grid (1, C, n, n) at coordinates (B, 2, h, w); zero beyond its border."""
    height = coordinates.shape[-2]
    # The batch lies along the rows of one reading, so that the grid is not repeated for each image.
    places = coordinates.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(0)
    with full_precision(grid):
        read = F.grid_sample(grid, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read[0].unflatten(1, (-1, height)).transpose(0, 1)


def _coordinates(channels: int) -> nn.Sequential:
    """1×1, tanh, 1×1, tanh: from features to a coordinate (B, 2, h, w) in (-1, 1)."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Tanh(), nn.Conv2d(channels, 2, 1), nn.Tanh())


class Bottleneck(nn.Module):
    """MobileNetV3's inverted bottleneck: 1×1, depthwise 3×3 and squeeze-excite, 1×1, with a residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(hidden, hidden // 4, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden // 4, hidden, 1, bias=False),
            nn.Hardsigmoid(),
        )
        self.reduce = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.depthwise(self.expand(features))
        return features + self.reduce(F.hardswish(inner * self.excite(inner)))


def _initialise(*modules: nn.Module) -> None:
    """N(0, 0.01²) for convolutions, zero for their biases."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
