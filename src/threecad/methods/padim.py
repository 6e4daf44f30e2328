"""PaDiM: one Gaussian a position, learnt by looking at the good images once; the map is the Mahalanobis distance.

Defard, Setkov, Loesch, Audigier: "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", ICPR 2020 workshops.

How it works
    1. A frozen backbone's features at strides 4, 8, 16, brought to the finest grid by nearest neighbour and put beside
       each other, describe every position by a vector; a random choice of its values is kept.
    2. At each position of the grid, mean μ and covariance Σ of that vector over the good images, plus ε I.
    3. A position's distance is M(x) = sqrt((x - μ)^T Σ^-1 (x - μ)); upsampled and smoothed it is the map, and its
       maximum is the score.

Where each equation is
    random choice `PaDiM._describe` · (1) Σ `nets.gaussians.covariance` · (2) M(x) `nets.gaussians.mahalanobis`

Differences
    from the paper
      - Images are resized to a square and not cropped; the paper crops 224 out of 256, defects near the border with it.
    ours, off in the `paper` preset
      - `shared`: each Σ is drawn towards the covariance of all positions, as far as the good parts make likely
        (`nets.gaussians.likeliest_prior`). With fewer parts than features little else is known of a position.
    from anomalib (no official code exists; the 3CAD paper ran anomalib)
      - Sums of x and x x^T stream through the fit, in float64: the same Σ in constant memory, where anomalib keeps all
        embeddings. The fit needs 8 bytes a number of Σ: 0.3 GB at 256×256 with 100 features, 10 GB with 550.
      - We keep W with W W^T = Σ^-1, not Σ^-1: |W^T (x - μ)| is no square root of a rounded-off negative number.
      - Values are chosen where they lie, before upsampling, which gives the same vectors for less work.
      - ε is the paper's 0.01; anomalib adds another 1e-5 before it inverts (`ridge = 0.01001`).
      - The map is smoothed with scipy's mirror, which repeats the edge pixel; anomalib's leaves it out. Only the outer
        16 px differ.
      - Weights are pinned by tag; anomalib's bare `resnet18` has changed its weights between releases.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from threecad.allocation import available_bytes
from threecad.detector import Detector, Phase, Preset, StatisticsPhase
from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.pyramid import Pyramid
from threecad.records import Prediction
from threecad.settings import BackboneConfig
from threecad.synthesis import TextureSource


class PaDiMConfig(BackboneConfig):
    """PaDiM's settings. The defaults are those of its ResNet-18; its WRN-50-2 keeps 550 features."""

    grid = 16

    backbone: str = "resnet18.tv_in1k"
    """Full timm tag (the paper's large one: `wide_resnet50_2.tv_in1k` with `features = 550`), or `embedded`."""

    features: int = Field(default=100, ge=1)
    """Randomly chosen channels that describe a position."""

    ridge: float = Field(default=0.01, gt=0)
    """ε on the diagonal of the covariance, in squared units of a feature."""

    shared: bool = False
    """Draw each Σ towards the covariance of all positions, as far as the good parts make likely (ours)."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    @classmethod
    def tiny(cls) -> PaDiMConfig:
        return cls(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64), features=12)


class PaDiM(Detector):
    """Patch distribution modelling (PaDiM, "Our approach: PaDiM")."""

    paper = METHODS.paper("padim")
    Config = PaDiMConfig
    batch = 32
    quick = Preset(method={"shared": True}, training={"batch": 16})
    leaves_out = True
    config: PaDiMConfig

    channels: Tensor  # (D,) which of the concatenated channels describe a position

    def __init__(self, config: PaDiMConfig) -> None:
        super().__init__(config)
        self.pyramid = Pyramid(config.backbone, config.weights)
        total, kept = sum(self.pyramid.channels), config.features
        if kept > total:
            raise SettingsError(
                f"setting 'method.features': expected at most {total}, the channels of {config.backbone}, found {kept}"
            )
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)
        self.height, self.width = (side // self.pyramid.strides[0] for side in config.image_size)
        self.register_buffer("channels", torch.randperm(total)[:kept].sort().values)
        self._require_memory(bytes_each=4)
        self.gaussians = PositionGaussians(self.height * self.width, kept, config.shared)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = M(x), upsampled and smoothed; score = its maximum."""
        return self._as_map(self.gaussians(self._describe(image)), image)

    def choices(self) -> list[str]:
        """How much positions share, and why."""
        return self.gaussians.choices("good parts")

    def left_out(self, image: Tensor) -> Prediction:
        """The same with each position's Gaussian as it would be without the image."""
        distances = self.gaussians.left_out(self.gaussians(self._describe(image).double()))
        return self._as_map(distances.float(), image)

    def _as_map(self, distance: Tensor, image: Tensor) -> Prediction:
        at_grid = distance.view(-1, 1, self.height, self.width)
        anomaly_map = self.smooth(upsample(at_grid, image.shape[-2:], align_corners=False))
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One pass over the good images."""
        self._require_memory(bytes_each=8)
        yield StatisticsPhase(
            "gaussians",
            self.gaussians.empty_sums,
            observe=lambda sums, batch: self.gaussians.add(sums, self._describe(batch.image)),
            conclude=lambda sums: self.gaussians.conclude(sums, self.config.ridge),
        )

    def _require_memory(self, bytes_each: int) -> None:
        """Nothing, where there is room for a Σ at each position, in numbers of so many bytes.

        Raises:
            SettingsError: there is not.
        """
        features = self.config.features
        needed, free = bytes_each * self.height * self.width * features**2, available_bytes()
        if self.channels.device.type == "cpu" and needed > free:
            fitting = max(1, int(features * (free / needed) ** 0.5))
            raise SettingsError(
                f"'padim' needs {needed / 1e9:.1f} GB of memory for Σ, {features}×{features} numbers at each of "
                f"{self.height}×{self.width} positions; {free / 1e9:.1f} GB are free\n"
                f"Take method.features = {fitting} or fewer, or a smaller method.image_size."
            )

    def _describe(self, image: Tensor) -> Tensor:
        """Vectors (P, B, D) of the chosen channels at each position of the finest grid."""
        features = self.pyramid(image)
        rows = torch.cat([scale.flatten(1).T for scale in features])  # all scales' values, one row each: (V, B)
        vectors = rows.index_select(0, self._places().flatten())
        return vectors.view(-1, len(self.channels), image.shape[0]).transpose(1, 2)

    def _places(self) -> Tensor:
        """Row (P, D) at which each position finds each chosen channel; nearest neighbour on the coarser grids."""
        device = self.channels.device
        y, x = torch.arange(self.height, device=device).view(-1, 1), torch.arange(self.width, device=device)
        places = torch.zeros(self.height * self.width, len(self.channels), dtype=torch.int64, device=device)
        first_row, first_channel = 0, 0
        for channels, stride in zip(self.pyramid.channels, self.pyramid.strides, strict=True):
            coarser = stride // self.pyramid.strides[0]
            height, width = self.height // coarser, self.width // coarser
            cell = ((y // coarser) * width + x // coarser).view(-1, 1)
            inside = self.channels - first_channel
            here = (inside >= 0) & (inside < channels)
            places = torch.where(here, first_row + inside * height * width + cell, places)
            first_row, first_channel = first_row + channels * height * width, first_channel + channels
        return places
