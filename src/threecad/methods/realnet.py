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
      - The last epoch is kept, not the best on the test set; an AUROC below 0.5 is not turned around; image labels come
        from folders.
      - An epoch shows every image once, on any number of devices.
      - Other backbones keep the published share of each stride's channels, and of the residuals. U-Nets have the
        published width for their channels, at least 16, and as many groups and heads as divide it.
    ours, off in the `paper` preset
      - `standardised`: features of EfficientNet-Lite0 have spreads of 3 to 8, which U-Nets that start with zeros do not
        reach in minutes. One look at the good images beforehand brings each channel to mean 0 and spread 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
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
    """Full timm tag, or `embedded` for the EfficientNet-Lite0 whose ImageNet weights come with the installation."""

    sdas_dir: Path | None = None
    """Folder of pictures with generated anomalies, which then take the place of textures."""

    selection_steps: int = 64
    """Batches over which the channels are judged."""

    width_ratio: float = 1.0
    """Width of the U-Nets as a share of the published one."""

    standardised: bool = False
    """Bring each channel to mean 0 and spread 1 over the good parts first (ours, not the paper's)."""

    learning_rate: float = 1e-4
    """Adam's rate."""

    epochs: int = 1000
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
        method={"width_ratio": 0.125, "standardised": True, "learning_rate": 1e-3},
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
        self.discriminator = Discriminator(2 * picked)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = the discriminator's softmax; score = its maximum after 16×16 average pooling."""
        features = self._features(image)
        logits = self._discriminate(features, self._reconstruct(features), image.shape[-2:])
        anomaly_map = logits.softmax(dim=1)[:, 1:]
        return Prediction(anomaly_map, F.avg_pool2d(anomaly_map, POOL_PX, stride=1).amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """AFS over images that are all altered, then one phase of Adam over images of which half are.

        Before, where features are standardised, one look at the good parts.
        """
        if self.config.standardised:
            yield standardisation_phase(
                self.standardise, lambda image: [f.movedim(1, -1) for f in self.backbone(image)]
            )
        source, opacity = textures, (0.2, 1.0)
        if self.config.sdas_dir is not None:
            source, opacity = FolderTextures(self.config.sdas_dir), (0.5, 1.0)
        augment = self.config.sdas_dir is None
        yield self._selection(TextureSynthesizer(source, opacity=opacity, augment=augment, eight_bit=True))
        trains = [self.unets, self.residual_selection, self.discriminator]
        parameters = [parameter for part in trains for parameter in part.parameters()]
        yield GradientPhase(
            "joint",
            losses=self.losses,
            trains=trains,
            optimizers=[torch.optim.Adam(parameters, lr=self.config.learning_rate)],
            duration=Epochs(self.config.epochs),
            synthesizer=TextureSynthesizer(source, opacity=opacity, share=0.5, augment=augment, eight_bit=True),
        )

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
        state = {
            str(stride): torch.zeros(channels, dtype=torch.float64)
            for stride, channels in zip(STRIDES, self.backbone.channels, strict=True)
        }

        def observe(batch: Batch) -> None:
            both = zip(state, self._backbone(batch.image), self._backbone(batch.augmented), strict=True)
            for stride, normal, altered in both:
                state[stride] += selection_error(normal, altered, batch.mask)

        def conclude() -> None:
            for select, errors in zip(self.selections, state.values(), strict=True):
                kept = select.get_buffer("channels")
                kept.copy_(smallest(errors, len(kept)))

        return StatisticsPhase("selection", state, observe, conclude, synthesizer, Steps(self.config.selection_steps))


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

    def __init__(self, channels: int) -> None:
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

    def forward(self, residuals: Tensor) -> Tensor:
        for unit in self.units:
            residuals = residuals + unit(residuals)
        features = self.narrow(residuals)
        with full_precision(features):  # two logits that differ in the fourth digit are one in bf16
            return self.head(features.float())


class UNet(nn.Module):
    """Features (B, C, h, w) to features, over three levels of which the coarser two attend; starts by giving zeros."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, skips, given = nn.ModuleList(), [width], width
        for level in range(3):
            made = width << level
            for _ in range(2):
                self.down.append(_block(given, made, attends=level > 0))
                skips.append(made)
                given = made
            if level < 2:
                self.down.append(ResidualBlock(given, given, nn.AvgPool2d(2), nn.AvgPool2d(2)))
                skips.append(given)
        self.middle = nn.Sequential(ResidualBlock(given, given), Attention(given), ResidualBlock(given, given))
        self.up = nn.ModuleList()
        for level in (2, 1, 0):
            made = width << level
            for last in (False, False, level > 0):
                block: list[nn.Module] = [_block(given + skips.pop(), made, attends=level > 0)]
                if last:
                    block.append(ResidualBlock(made, made, _doubled(made), _doubled(made)))
                self.up.append(nn.Sequential(*block))
                given = made
        self.leave = nn.Sequential(_norm(given), nn.SiLU(), nn.Conv2d(given, channels, 3, padding=1))
        _zero(self.leave[-1])

    def forward(self, features: Tensor) -> Tensor:
        made = self.enter(features)
        skips = [made]
        for block in self.down:
            made = block(made)
            skips.append(made)
        made = self.middle(made)
        for block in self.up:
            made = block(torch.cat([made, skips.pop()], dim=1))
        return self.leave(made)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3, beside a 1×1 where the channels change; both paths resampled behind the SiLU if asked."""

    def __init__(
        self, given: int, made: int, resample: nn.Module | None = None, resample_shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(given), nn.SiLU(), resample or nn.Identity(), nn.Conv2d(given, made, 3, padding=1)
        )
        self.resample_shortcut = resample_shortcut or nn.Identity()
        self.shortcut = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

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
        made = F.scaled_dot_product_attention(*heads.unbind(1))
        return features + self.merge(made.transpose(2, 3).flatten(1, 2).unflatten(2, size))


def _block(given: int, made: int, attends: bool) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(given, made), Attention(made) if attends else nn.Identity())


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
