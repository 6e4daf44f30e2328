"""UniAD: one transformer reconstructs the features of all categories, and is kept from copying what it sees.

You, Cui, Shen, Yang, Lu, Zheng, Le: "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022.

How it works
    1. A frozen backbone's features at four strides are brought to stride 16 and concatenated: a token a position.
    2. In training, each token is jittered: the model has to denoise, not to repeat.
    3. An encoder, and a decoder with a learnt query embedding in every layer, reconstruct the tokens. No token attends
       to its own neighbourhood, so that an anomaly cannot be put together from itself.
    4. The anomaly map is the length of the difference between features and reconstruction at each position.
    One model serves all categories; no category label is used anywhere.

Where each idea is
    neighbour masked attention `neighbour_mask`, `Attention` · layer-wise query decoder `DecoderLayer` · feature
    jittering `jitter` · loss `reconstruction_loss` · score `UniAD.forward`

Differences
    from the paper: none known.
    from the official code
      - timm pads the strided convolutions for the size at hand; the official backbone pads for 380 px, which differs in
        one layer and shifts the features at stride 8 and coarser by 4 pixels of the image.
      - 64 images a step, as on the official 8 GPUs of 8; its README finds 8 images on one GPU a little better
        (97.6 against 96.7 image AUROC on MVTec-AD).
      - The last epoch is kept, not the best on the test set; an AUROC below 0.5 is not turned around.
      - Masks are compared at `evaluation.size`, one rule for all methods; there at 224 px.
      - Image labels come from folders.
      - Other sizes than 224×224 get their own grid of tokens; the window stays 7×7.
    kept from the official code
      - The rate falls after 801 of 1000 epochs: its schedule is stepped after the epoch.
    ours, off in the `paper` preset
      - `standardised`: features of EfficientNet-Lite0 have spreads of 3 to 8, and a short budget of steps would be
        spent on learning that scale. A statistics phase beforehand brings each channel to mean 0 and spread 1 over the
        good images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from threecad.detector import Detector, Epochs, GradientPhase, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import full_precision, upsample
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.records import Batch, Prediction
from threecad.schedules import milestones
from threecad.settings import AUTO, BackboneConfig, Size
from threecad.shared_phases import standardisation_phase
from threecad.synthesis import TextureSource

STRIDES = (2, 4, 8, 16)
POOL_PX = 16
"""Side of the average pooling before the maximum of the map is taken as score."""


class UniADConfig(BackboneConfig):
    """UniAD's settings; the defaults are the paper's."""

    grid = 16

    image_size: Size = (224, 224)
    """Height and width in pixels that images are resized to; one number means a square."""

    backbone: str = "tf_efficientnet_b4.aa_in1k"
    """Full timm tag; `embedded` or `embedded-vit` for one whose weights a package of the index carries."""

    width: int = Field(default=256, ge=2)
    """Channels of a token inside the transformer; even, and a multiple of `heads`."""

    heads: int = Field(default=8, ge=1)
    """Heads of every attention."""

    hidden: int = Field(default=1024, ge=1)
    """Channels inside the feed-forward part of a layer."""

    layers: int = Field(default=4, ge=1)
    """Layers of the encoder, and of the decoder."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of activations dropped in training."""

    window: int = Field(default=7, ge=1)
    """Side, in tokens, of the neighbourhood that a token may not attend to; odd, with the token in its middle."""

    jitter: float = Field(default=20.0, ge=0)
    """Strength of the noise on the tokens in training."""

    standardised: bool = False
    """Bring each channel to mean 0 and spread 1 over the good parts first (ours, not the paper's)."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Rate of AdamW at the schedule's 1."""

    epochs: int = Field(default=1000, ge=1)
    """Passes over the good images of all categories."""

    @model_validator(mode="after")
    def _shared_by_heads_and_axes(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"expected an even method.width that is a multiple of method.heads, "
                f"found width {self.width} and heads {self.heads}"
            )
        return self

    @model_validator(mode="after")
    def _somewhere_to_attend(self) -> Self:
        if self.window % 2 == 0:
            raise ValueError(f"expected an odd method.window, found {self.window}; take {self.window + 1}")
        height, width = (side // STRIDES[-1] for side in self.image_size)
        if self.image_size != AUTO and max(height, width) <= self.window:
            raise ValueError(
                f"expected more tokens along a side than the {self.window} of the window, found {height}×{width}; "
                f"take an image_size of {(self.window + 1) * STRIDES[-1]} px or more, or a smaller method.window"
            )
        return self

    @classmethod
    def tiny(cls) -> UniADConfig:
        return cls(
            backbone="resnet10t.c3_in1k",
            weights="random",
            image_size=(128, 128),
            width=32,
            heads=2,
            hidden=64,
            layers=2,
        )


class UniAD(Detector):
    """A masked-attention transformer that reconstructs features."""

    paper = METHODS.paper("uniad")
    Config = UniADConfig
    scope = "dataset"
    batch = 64
    quick = Preset(
        method={"standardised": True, "dropout": 0.0, "learning_rate": 5e-4},
        training={"steps": 1000, "batch": 8, "schedule": "one_cycle"},
    )
    config: UniADConfig

    def __init__(self, config: UniADConfig) -> None:
        super().__init__(config)
        self.backbone = Pyramid(config.backbone, config.weights, STRIDES)
        channels = sum(self.backbone.channels)
        self.standardise = Standardisation(channels)
        self.transformer = Transformer(config, channels)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = upsample ‖f - f_rec‖₂; score = its maximum after 16×16 average pooling."""
        features = self._features(image)
        with full_precision(features):
            distance = torch.linalg.vector_norm(features - self._reconstruct(features), dim=1, keepdim=True)
        anomaly_map = upsample(distance, image.shape[-2:])
        return Prediction(anomaly_map, F.avg_pool2d(anomaly_map, POOL_PX, stride=1).amax(dim=(1, 2, 3)))

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """One phase of AdamW; before, where features are standardised, a statistics phase."""
        if self.config.standardised:
            yield standardisation_phase([self.standardise], lambda image: [self._tokens(image)])
        yield GradientPhase(
            "reconstruction",
            losses=self.losses,
            trains=[self.transformer],
            optimizers=[
                torch.optim.AdamW(self.transformer.parameters(), lr=self.config.learning_rate, weight_decay=1e-4)
            ],
            duration=Epochs(self.config.epochs),
            schedule=milestones((0.801,), 0.1),
            clip_norm=0.1,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L = MSE between the features and what is reconstructed from the jittered ones."""
        features = self._features(batch.image)
        return {
            "reconstruction": reconstruction_loss(self._reconstruct(jitter(features, self.config.jitter)), features)
        }

    def _features(self, image: Tensor) -> Tensor:
        """f: features of all strides at the coarsest one's grid, (B, C, H/16, W/16)."""
        return self.standardise(self._tokens(image)).movedim(-1, 1)

    def _tokens(self, image: Tensor) -> Tensor:
        """What the backbone sees at each position of that grid, (B, H/16, W/16, C)."""
        features = self.backbone(image)
        size = features[-1].shape[-2:]
        return torch.cat([upsample(f, size) for f in features], dim=1).movedim(1, -1)

    def _reconstruct(self, features: Tensor) -> Tensor:
        """f_rec of `features`, both (B, C, h, w)."""
        tokens = self.transformer(features.flatten(2).transpose(1, 2)).float()
        return tokens.transpose(1, 2).unflatten(2, features.shape[-2:])


def jitter(features: Tensor, strength: float) -> Tensor:
    """f + N(0, 1) · strength · ‖f‖₂ / C at each position of (B, C, h, w), in training with every image."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features + torch.randn_like(features) * (strength * length / features.shape[1])


def reconstruction_loss(reconstructed: Tensor, features: Tensor) -> Tensor:
    """L = mean (f_rec - f)²."""
    with full_precision(features):
        return F.mse_loss(reconstructed.float(), features.float())


def neighbour_mask(grid: tuple[int, int], window: int) -> Tensor:
    """(T, T) added to the logits of an attention: -inf where a token lies in the other's window, itself included.

    Args:
        grid: rows and columns of tokens; T = rows · columns.
        window: side of the neighbourhood in tokens, odd.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()])
    apart = (place[:, :, None] - place[:, None, :]).abs().amax(dim=0)
    return torch.zeros(apart.shape).masked_fill(apart <= window // 2, float("-inf"))


class Transformer(nn.Module):
    """Tokens (B, T, C) in, their reconstruction (B, T, C) out."""

    mask: Tensor

    def __init__(self, config: UniADConfig, channels: int) -> None:
        super().__init__()
        height, width = config.image_size
        grid = (height // STRIDES[-1], width // STRIDES[-1])
        self.register_buffer("mask", neighbour_mask(grid, config.window), persistent=False)
        self.rows = nn.Parameter(torch.rand(grid[0], config.width // 2))
        self.columns = nn.Parameter(torch.rand(grid[1], config.width // 2))
        self.enter = nn.Linear(channels, config.width)
        encoder, decoder = EncoderLayer(config), DecoderLayer(config, tokens=grid[0] * grid[1])
        # Copies of one layer: the packed projections and the query embeddings start alike in all layers.
        self.encoder = nn.ModuleList(copy.deepcopy(encoder) for _ in range(config.layers))
        self.decoder = nn.ModuleList(copy.deepcopy(decoder) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, channels)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        position = self._position()
        encoded = self.enter(tokens)
        for layer in self.encoder:
            encoded = layer(encoded, position, self.mask)
        decoded = encoded
        for layer in self.decoder:
            decoded = layer(decoded, encoded, position, self.mask)
        return self.leave(self.norm(decoded))

    def _position(self) -> Tensor:
        """Learnt embedding of each token's place (T, width): its column's part, then its row's."""
        rows, columns = len(self.rows), len(self.columns)
        column = self.columns[None, :, :].expand(rows, -1, -1)
        row = self.rows[:, None, :].expand(-1, columns, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Masked self-attention, then feed-forward; normalised behind each."""

    def __init__(self, config: UniADConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        placed = tokens + position
        return self.feed_forward(self.attention(tokens, placed, placed, tokens, mask))


class DecoderLayer(nn.Module):
    """The layer's own learnt queries attend to the encoder's tokens, then to those of the layer before."""

    def __init__(self, config: UniADConfig, tokens: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, config.width))
        self.to_encoder = Attention(config)
        self.to_previous = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, previous: Tensor, encoded: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        queries = self.queries.expand_as(encoded)
        tokens = self.to_encoder(queries, queries + position, encoded + position, encoded, mask)
        tokens = self.to_previous(tokens, tokens + position, previous + position, previous, mask)
        return self.feed_forward(tokens)


class Attention(nn.Module):
    """Multi-head attention with its residual: LayerNorm(residual + dropout(attend))."""

    def __init__(self, config: UniADConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        # Query, key and value, packed; no nn.Linear, so that all layers keep the values that they are copied with.
        self.project = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * config.width, config.width)))
        self.project_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.merge = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, residual: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """All (B, T, width); `mask` (T, T) is added to the logits."""
        weights, biases = self.project.chunk(3), self.project_bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype), dropout_p=dropout)
        merged = self.merge(attended.transpose(1, 2).flatten(2))
        return self.norm(residual + F.dropout(merged, self.dropout, self.training))


class FeedForward(nn.Module):
    """LayerNorm(tokens + dropout(Linear(dropout(ReLU(Linear(tokens))))))."""

    def __init__(self, config: UniADConfig) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.width),
            nn.Dropout(config.dropout),
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.inner(tokens))
