"""RealNet: the features that tell anomalies best are reconstructed, and the largest residuals are segmented.

Zhang, Xu, Zhou: "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024.

How it works
    1. AFS: over batches of altered images, each channel of a frozen backbone is judged by how well its squared
       difference to the normal image, scaled to 0 … 1, agrees with the mask. At each stride the best are kept.
    2. A U-Net at each stride reconstructs the kept features of the normal image from those of the altered one.
    3. RRS: of all squared residuals, the channels with the largest maximum and with the largest mean are picked, image
       by image.
    4. A discriminator turns the picked residuals into a mask. Reconstruction and discrimination learn together.

Where each equation is
    AFS `selection_error`, `RealNet._selection` · reconstruction loss, segmentation loss `RealNet.losses` · RRS
    `ResidualSelection` · score `RealNet.forward`

Differences
    from the paper
      - Anomalies take their texture from the texture source; the paper's come from a diffusion model fine-tuned on each
        data set (SDAS). Pictures made by one go into `sdas_dir`, and are then used with the paper's opacity.
    from the official code
      - Anomalies may lie anywhere in the image; there a foreground is cut out by a rule for each category of MVTec-AD.
        `foreground = true` keeps them on the part, found by Otsu's threshold.
      - Textures are resized with antialiasing; the official loader has none (`cv2.resize`).
      - The last epoch is kept, not the best on the test set; an AUROC below 0.5 is not turned around.
      - Masks are compared at `evaluation.size`, one rule for all methods; image labels come from folders.
      - An epoch shows every image once, on any number of devices.
      - Other backbones keep the published share of each stride's channels, and of the residuals. U-Nets have the
        published width for their channels, at least 16, and as many groups and heads as divide it.
    ours, off in the `paper` preset
      - `standardised`: features of EfficientNet-Lite0 have spreads of 3 to 8, which U-Nets that start with zeros do not
        reach in minutes. A statistics phase beforehand brings each channel to mean 0 and spread 1 over the good images.
      - `prior`: most pixels are normal, and at a high rate the first steps learn nothing else: they can push all four
        channels before the last layer below 0, where their ReLU passes no gradient ever after. So the last layer starts
        with weights of 0, and with the logarithms of the shares as its bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset, StatisticsPhase, Steps
from threecad.methods import METHODS
from threecad.nets.maps import full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.records import Batch, Prediction
from threecad.settings import BackboneConfig
from threecad.shared_phases import standardisation_phase
from threecad.synthesis import TextureSource
from threecad.synthesis.blending import TextureSynthesizer
from threecad.synthesis.foreground import otsu_foreground
from threecad.synthesis.textures import FolderTextures

STRIDES = (4, 8, 16, 32)
KEPT = (1.0, 1.0, 0.5, 0.125)
"""Share of the channels that AFS keeps at each stride: 256, 512, 512, 256 of WideResNet-50's."""
PICKED = 1 / 6
"""Share of the residuals that RRS picks by their maximum, and again by their mean: twice 256 of 1,536."""
POOL_PX = 16
"""Side of the average pooling before the maximum of the map is taken as score."""


class RealNetConfig(BackboneConfig):
    """RealNet's settings; the defaults are the paper's."""

    grid = 128

    backbone: str = "wide_resnet50_2.racm_in1k"
    """Full timm tag; `embedded` or `embedded-vit` for one whose weights a package of the index carries."""

    sdas_dir: Path | None = None
    """Folder of pictures with generated anomalies, which then take the place of textures."""

    foreground: bool = False
    """Keep synthetic anomalies on the part, which Otsu's threshold tells from a plain background."""

    selection_steps: int = Field(default=64, ge=1)
    """Batches over which the channels are judged."""

    width_ratio: float = Field(default=1.0, gt=0)
    """Width of the U-Nets as a share of the published one."""

    standardised: bool = False
    """Bring each channel to mean 0 and spread 1 over the good parts first (ours, not the paper's)."""

    prior: float | None = Field(default=None, gt=0, lt=1)
    """Share of anomalous pixels that the discriminator expects before it has learnt anything (ours); unset: whatever
    its random weights say."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's rate."""

    epochs: int = Field(default=1000, ge=1)
    """Passes over the good images."""

    @classmethod
    def tiny(cls) -> RealNetConfig:
        return cls(
            backbone="test_efficientnet.r160_in1k",
            weights="random",
            image_size=(128, 128),
            selection_steps=2,
            width_ratio=0.5,
        )


class RealNet(Detector):
    """Feature selection, reconstruction, residual selection and discrimination."""

    paper = METHODS.paper("realnet")
    Config = RealNetConfig
    batch = 16
    quick = Preset(
        method={"width_ratio": 0.125, "standardised": True, "learning_rate": 1e-3, "prior": 0.05},
        training={"steps": 300, "batch": 8, "schedule": "one_cycle"},
    )
    config: RealNetConfig

    def __init__(self, config: RealNetConfig) -> None:
        super().__init__(config)
        self.backbone = Pyramid(config.backbone, config.weights, STRIDES)
        self.standardise = nn.ModuleList(Standardisation(channels) for channels in self.backbone.channels)
        kept = [max(1, round(share * c)) for share, c in zip(KEPT, self.backbone.channels, strict=True)]
        self.selections = nn.ModuleList(Selection(channels) for channels in kept)
        self.unets = nn.ModuleList(UNet(channels, _unet_width(channels, config.width_ratio)) for channels in kept)
        picked = max(1, round(PICKED * sum(kept)))
        self.residual_selection = ResidualSelection(sum(kept), picked)
        self.discriminator = Discriminator(2 * picked, config.prior)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = the discriminator's softmax; score = its maximum after 16×16 average pooling."""
        features = self._features(image)
        logits = self._discriminate(features, self._reconstruct(features), image.shape[-2:])
        anomaly_map = logits.softmax(dim=1)[:, 1:]
        return Prediction(anomaly_map, F.avg_pool2d(anomaly_map, POOL_PX, stride=1).amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """AFS over images that are all altered, then one phase of Adam over images of which half are.

        Before, where features are standardised, a statistics phase.
        """
        if self.config.standardised:
            yield standardisation_phase(
                self.standardise, lambda image: [f.movedim(1, -1) for f in self.backbone(image)]
            )
        synthesizer = self._synthesizer(textures)
        yield self._selection(synthesizer)
        trains = [self.unets, self.residual_selection, self.discriminator]
        parameters = [parameter for part in trains for parameter in part.parameters()]
        yield GradientPhase(
            "joint",
            losses=self.losses,
            trains=trains,
            optimizers=[torch.optim.Adam(parameters, lr=self.config.learning_rate)],
            duration=Epochs(self.config.epochs),
            synthesizer=replace(synthesizer, share=0.5),
        )

    @property
    def least_batch(self) -> int:
        """1: only grids finer than stride 8 are normalised over a batch."""
        return 1

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Σ over strides of mean (f_rec - f_normal)², and the pixels' cross-entropy, with weights of 1."""
        normal, altered = self._features(batch.image), self._features(batch.augmented)
        reconstructed = self._reconstruct(altered)
        logits = self._discriminate(altered, reconstructed, batch.mask.shape[-2:])
        with full_precision(logits):
            errors = [F.mse_loss(r, n) for r, n in zip(reconstructed, normal, strict=True)]
            return {
                "reconstruction": torch.stack(errors).sum(),
                "segmentation": F.cross_entropy(logits, batch.mask.squeeze(1).long()),
            }

    def _features(self, image: Tensor) -> list[Tensor]:
        """The kept features at each stride, [(B, C_i, H/s_i, W/s_i)]."""
        return [select(features) for select, features in zip(self.selections, self._backbone(image), strict=True)]

    def _backbone(self, image: Tensor) -> list[Tensor]:
        """Features at each stride before AFS. In bf16 their squared differences would rank other channels first."""
        with full_precision(image):
            features = self.backbone(image)
            return [to(f.movedim(1, -1)).movedim(-1, 1) for to, f in zip(self.standardise, features, strict=True)]

    def _reconstruct(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the same shapes as they would be of a normal image, float32."""
        return [unet(f).float() for unet, f in zip(self.unets, features, strict=True)]

    def _discriminate(self, features: Sequence[Tensor], reconstructed: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits (B, 2, H, W) of normal and anomalous."""
        grid = features[0].shape[-2:]
        with full_precision(features[0]):
            residuals = [(f - r).square() for f, r in zip(features, reconstructed, strict=True)]
            picked = self.residual_selection(torch.cat([upsample(residual, grid) for residual in residuals], dim=1))
        return upsample(self.discriminator(picked), size)

    def _selection(self, synthesizer: TextureSynthesizer) -> StatisticsPhase:
        """AFS: sums of the channels' errors, from which each stride keeps its best."""

        def empty_sums() -> dict[str, Tensor]:
            channels = zip(STRIDES, self.backbone.channels, strict=True)
            return {str(stride): torch.zeros(count, dtype=torch.float64) for stride, count in channels}

        def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
            both = zip(STRIDES, self._backbone(batch.image), self._backbone(batch.augmented), strict=True)
            for stride, normal, altered in both:
                sums[str(stride)].add_(selection_error(normal, altered, batch.mask))

        def conclude(sums: Mapping[str, Tensor]) -> None:
            for stride, select in zip(STRIDES, self.selections, strict=True):
                kept = select.get_buffer("channels")
                kept.copy_(smallest(sums[str(stride)], len(kept)))

        duration = Steps(self.config.selection_steps)
        return StatisticsPhase("selection", empty_sums, observe, conclude, synthesizer, duration)

    def _synthesizer(self, textures: TextureSource) -> TextureSynthesizer:
        """Puts an anomaly into every image: an augmented texture, or a part of a generated picture."""
        foreground = otsu_foreground if self.config.foreground else None
        if self._generated is None:
            return TextureSynthesizer(textures, augment=True, eight_bit=True, foreground=foreground)
        return TextureSynthesizer(self._generated, opacity=(0.5, 1.0), eight_bit=True, foreground=foreground)

    @cached_property
    def _generated(self) -> FolderTextures | None:
        """The pictures in `sdas_dir`; read once, since every content is hashed for the record."""
        return None if self.config.sdas_dir is None else FolderTextures(self.config.sdas_dir)


def selection_error(normal: Tensor, altered: Tensor, mask: Tensor) -> Tensor:
    """AFS: mean of (e - mask)² for each channel (C,), float64, with e = (f_altered - f_normal)² scaled to 0 … 1.

    The scale is the channel's own: its least and largest difference over all positions of the batch.

    Args:
        normal: (B, C, h, w).
        altered: likewise.
        mask: (B, 1, H, W), brought to the features' grid by its nearest pixel.
    """
    with full_precision(normal):
        difference = (altered.float() - normal.float()).square()
        low, high = difference.amin(dim=(0, 2, 3), keepdim=True), difference.amax(dim=(0, 2, 3), keepdim=True)
        scaled = (difference - low) / (high - low + 1e-4)
        return (scaled - F.interpolate(mask, size=normal.shape[-2:])).square().double().mean(dim=(0, 2, 3))


def smallest(errors: Tensor, count: int) -> Tensor:
    """Indices (count,), ascending, of the smallest of `errors` (C,); those that are no number come last."""
    return errors.nan_to_num(nan=math.inf, posinf=math.inf).argsort(stable=True)[:count].sort().values


class Selection(nn.Module):
    """Keeps `count` channels of features (B, C, h, w), in their order; the first ones until AFS has told which."""

    channels: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("channels", torch.arange(count))

    def forward(self, features: Tensor) -> Tensor:
        return features.index_select(1, self.channels)


class ResidualSelection(nn.Module):
    """RRS: of residuals (B, C, h, w), those with the largest maximum, then those with the largest mean: (B, 2k, h, w).

    Ranked after a normalisation without affine part, gathered as they are; a residual may come twice.
    """

    def __init__(self, channels: int, picked: int) -> None:
        super().__init__()
        self.picked = picked
        self.normalise = nn.BatchNorm2d(channels, momentum=0.9, affine=False)

    def forward(self, residuals: Tensor) -> Tensor:
        ranked = self.normalise(residuals)
        by_maximum = ranked.amax(dim=(2, 3)).topk(self.picked).indices
        by_mean = ranked.mean(dim=(2, 3)).topk(self.picked).indices
        chosen = torch.cat([by_maximum, by_mean], dim=1)[:, :, None, None]
        return residuals.gather(1, chosen.expand(-1, -1, *residuals.shape[-2:]))


class Discriminator(nn.Module):
    """Residuals (B, C, h, w) to logits (B, 2, 2h, 2w)."""

    def __init__(self, channels: int, prior: float | None = None) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 1, bias=False),
            )
            for _ in range(2)
        )
        wide, middle, narrow = (max(channels // divisor, least) for divisor, least in ((4, 32), (16, 16), (64, 8)))
        self.narrow = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, wide, 3, padding=1),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, middle, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, narrow, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(narrow, 4, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv2d(4, 2, 3, padding=1)
        if prior is not None:
            nn.init.zeros_(self.head.weight)
            self.head.bias = nn.Parameter(torch.tensor([1 - prior, prior]).log())

    def forward(self, residuals: Tensor) -> Tensor:
        for unit in self.units:
            residuals = residuals + unit(residuals)
        features = self.narrow(residuals)
        with full_precision(features):  # bf16 would round close logits to the same value
            return self.head(features.float())


class UNet(nn.Module):
    """Features (B, C, h, w) to features, over three levels of which the coarser two attend; starts by giving zeros."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, skips, in_channels = nn.ModuleList(), [width], width
        for level in range(3):
            out_channels = width << level
            for _ in range(2):
                self.down.append(_block(in_channels, out_channels, attends=level > 0))
                skips.append(out_channels)
                in_channels = out_channels
            if level < 2:
                self.down.append(ResidualBlock(in_channels, in_channels, nn.AvgPool2d(2), nn.AvgPool2d(2)))
                skips.append(in_channels)
        self.middle = nn.Sequential(
            ResidualBlock(in_channels, in_channels), Attention(in_channels), ResidualBlock(in_channels, in_channels)
        )
        self.up = nn.ModuleList()
        for level in (2, 1, 0):
            out_channels = width << level
            for last in (False, False, level > 0):
                block: list[nn.Module] = [_block(in_channels + skips.pop(), out_channels, attends=level > 0)]
                if last:
                    block.append(
                        ResidualBlock(out_channels, out_channels, _doubled(out_channels), _doubled(out_channels))
                    )
                self.up.append(nn.Sequential(*block))
                in_channels = out_channels
        self.leave = nn.Sequential(_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, channels, 3, padding=1))
        _zero(self.leave[-1])

    def forward(self, features: Tensor) -> Tensor:
        features = self.enter(features)
        skips = [features]
        for block in self.down:
            features = block(features)
            skips.append(features)
        features = self.middle(features)
        for block in self.up:
            features = block(torch.cat([features, skips.pop()], dim=1))
        return self.leave(features)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3, beside a 1×1 where the channels change; both paths resampled behind the SiLU if asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resample: nn.Module | None = None,
        resample_shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(in_channels), nn.SiLU(), resample or nn.Identity(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.resample_shortcut = resample_shortcut or nn.Identity()
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut(self.resample_shortcut(features)) + self.branch(features)


class Attention(nn.Module):
    """Every position attends to all, in heads of 64 channels, with a residual; starts by changing nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)
        self.norm = _norm(channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.merge = nn.Conv2d(channels, channels, 1)
        _zero(self.merge)

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        heads = self.project(self.norm(features)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(3, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(1))
        return features + self.merge(attended.transpose(2, 3).flatten(1, 2).unflatten(2, size))


def _block(in_channels: int, out_channels: int, attends: bool) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, out_channels), Attention(out_channels) if attends else nn.Identity()
    )


def _doubled(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many as divide narrow channels with 4, the published least, in each."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def _zero(convolution: nn.Module) -> None:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)


def _unet_width(channels: int, ratio: float) -> int:
    """Half the channels times `ratio`, to a multiple of 8 and at least 16."""
    return max(16, 8 * round(ratio * channels / 16))
