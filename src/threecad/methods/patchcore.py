"""PatchCore: good parts' patches are remembered; a patch far from all of them is a defect.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

How it works
    1. A frozen backbone's features at strides 8 and 16 are gathered over 3×3 neighbourhoods, brought to the finer grid
       and pooled to one vector a patch.
    2. The patches of all good images are a memory. A greedy coreset of it is kept: again and again the patch that is
       farthest from those chosen before.
    3. A patch's distance from the nearest one in memory, upsampled and smoothed, is the map.
    4. The score is the largest distance, made less where the nearest patch in memory has others close to the tested one
       around it, and so is no rare one.

Where each equation is
    (1-3) locally aware patches `nets.patches.PatchFeatures` · (4) M `nets.candidates.Candidates` · (5) coreset
    `nets.patch_memory.greedy_coreset` · (6) nearest patch `PatchMemory.forward` · (7) weight of the score
    `PatchMemory.rarity`

Differences
    from the paper
      - Images are resized to 224×224 and not cropped; the paper crops 224 out of 256 and loses the border's defects.
      - The paper does not say how many neighbours b re-weight the score; 9 is anomalib's choice.
      - Memory is bounded: at most `candidate_patches` are chosen from and `memory_patches` kept. The sets of MVTec AD
        have fewer; of a larger set's patches a random choice is chosen from. What is kept is saved at its largest size.
    from the authors' code
      - The score is re-weighted by eq. (7), and distances are not squared; the code takes the largest squared distance.
      - Vectors are pooled before they are brought to the finer grid, not after: both are linear, along different axes.
      - Patches are projected for the coreset by a Gaussian matrix, not by a fresh linear layer's uniform one.
      - Maps and scores are not rescaled over the test set.
    from anomalib
      - Its vectors are 3×3 means of each channel, 1536 of them, and its coreset starts at one random patch.
    ours, off in the `paper` preset
      - `neighbourhood_px`: a patch is compared only with patches that good parts have around its own place; each place
        has its share of the memory. What is good in one place is a defect in another, and less is searched.
      - `whitened`: differences count in units of how good parts differ at one and the same place, by the covariance
        that all places have in common.
      - `standardised`: the map is how far a distance lies above what is usual at its place, and the score asks how
        unusual the largest are together, few or many (`nets.oddness`). What is usual is learnt from the good parts,
        each compared with the others.
      - `sampling = "k_means"`: the memory keeps means of alike patches, which are nearer to the next good one than any
        single patch is.
      - `dimensions = 0`: vectors keep one value a channel, which suits narrow backbones, with `strides` of three scales
        and no neighbourhood (`patch = 1`), lest small defects be averaged away.
      - Good parts that were learnt from are scored as if they had been left out: their own patches are not compared
        with; means, covariance and what is usual are those of the others. Which patches are kept or grouped stays as
        it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from threecad.detector import Detector, Phase, Preset
from threecad.methods import METHODS
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.nearest_patches import Nearest, NearestPatches
from threecad.nets.oddness import Oddness
from threecad.nets.patch_memory import PatchMemory
from threecad.nets.patches import PatchFeatures
from threecad.nets.pyramid import Pyramid
from threecad.records import Prediction
from threecad.settings import AUTO, BackboneConfig, Size
from threecad.shared_phases import left_out_phase, patch_phases
from threecad.synthesis import TextureSource

STRIDE = 8  # image pixels between two patches

MOST_PATCHES = 786_432
"""That `quick` keeps: all of 768 parts of 65,536 pixels, in 0.55 GB."""


class PatchCoreConfig(BackboneConfig):
    """PatchCore's settings. The defaults are those of the paper's PatchCore-10%."""

    grid = 16

    image_size: Size = (224, 224)
    """Height and width in pixels that images are resized to; one number means a square."""

    strides: tuple[int, ...] = (8, 16)
    """Strides of the backbone's features that describe a patch."""

    patch: Literal[1, 3, 5] = 3
    """Side of the neighbourhood that a patch is gathered over, in features."""

    dimensions: int = Field(default=1024, ge=0)
    """Most values of a patch's vector, pooled as in the paper; 0 keeps the mean of each channel (ours)."""

    coreset_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the good parts' patches that is kept."""

    memory_patches: int = Field(default=32_768, ge=1)
    """Most patches that are kept; a fit makes no room for more than its images have. Each takes 4 bytes a dimension on
    disk and in memory."""

    candidate_patches: int = Field(default=327_680, ge=1)
    """Most patches that are chosen from. Each takes 16 bytes a dimension of memory while fitting."""

    sampling: Literal["coreset", "k_means"] = "coreset"
    """Keep a greedy coreset, or the means of groups of patches (ours)."""

    neighbourhood_px: int | None = Field(default=None, ge=0)
    """Compare with good parts' patches at most so many pixels away (ours). Unset: with all of them."""

    whitened: bool = False
    """Measure differences in units of how good parts differ at one place (ours)."""

    ridge: float = Field(default=0.001, gt=0)
    """Share of the mean variance that is added to every variance, where differences are whitened."""

    standardised: bool = False
    """Tell by the good parts how far a distance at each place, and a score, lies from the usual (ours)."""

    neighbours: int = Field(default=9, ge=1)
    """b: patches in memory that re-weight the score; 1 leaves it as it is."""

    sigma_px: float = Field(default=4.0, gt=0)
    """Spread of the Gaussian filter of the map, in pixels of the input."""

    @model_validator(mode="after")
    def _one_score(self) -> Self:
        if self.neighbours > 1 and self.standardised:
            raise ValueError("neighbours weight the largest distance alone; set standardised = false or neighbours = 1")
        return self

    def for_images(self, images: int) -> Self:
        """The same with no room for patches that so many images do not have."""
        if self.image_size == AUTO:
            return self
        patches = images * (self.image_size[0] // STRIDE) * (self.image_size[1] // STRIDE)
        candidates = min(self.candidate_patches, patches)
        kept = min(self.memory_patches, math.ceil(self.coreset_share * candidates))
        return self.model_copy(update={"candidate_patches": candidates, "memory_patches": kept})

    @classmethod
    def tiny(cls) -> PatchCoreConfig:
        return cls(
            backbone="resnet10t.c3_in1k",
            weights="random",
            image_size=(64, 64),
            dimensions=48,
            memory_patches=96,
            candidate_patches=1024,
        )


class PatchCore(Detector):
    """A memory of locally aware patches (PatchCore, "Method")."""

    paper = METHODS.paper("patchcore")
    Config = PatchCoreConfig
    batch = 2
    leaves_out = True
    advice = "ready now; `threecad fit cfrg` learns for minutes and outlines small defects better"
    quick = Preset(
        method={
            "strides": (4, 8, 16),
            "patch": 1,
            "dimensions": 0,
            "coreset_share": 1.0,
            "candidate_patches": MOST_PATCHES,
            "memory_patches": MOST_PATCHES,
            "sampling": "k_means",
            "neighbourhood_px": 8,
            "whitened": True,
            "standardised": True,
            "neighbours": 1,
        },
        training={"batch": 8},
    )
    config: PatchCoreConfig

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        pyramid = Pyramid(config.backbone, config.weights, config.strides)
        self.patches = PatchFeatures(pyramid, config.dimensions or None, config.patch, STRIDE)
        self.height, self.width = (side // STRIDE for side in config.image_size)
        self.nearest = NearestPatches(
            (self.height, self.width),
            self.patches.values,
            patches=config.memory_patches,
            candidates=config.candidate_patches,
            reach=None if config.neighbourhood_px is None else config.neighbourhood_px // STRIDE,
            share=config.coreset_share,
            sampling=config.sampling,
            ridge=config.ridge if config.whitened else None,
        )
        self.oddness = Oddness(self.height * self.width) if config.standardised else None
        self.smooth = GaussianBlur(config.sigma_px, config.image_size)

    def forward(self, image: Tensor) -> Prediction:
        """anomaly_map = distances, upsampled and smoothed; score = the largest, weighted by how rare its patch is.

        Standardised, both are `Oddness`'s: z in place of the distances, and its score.
        """
        nearest = self.nearest(self._describe(image))
        if self.oddness is not None:
            return self._prediction(*self.oddness(nearest.distances))
        return self._prediction(nearest.distances, self._score(nearest))

    def left_out(self, image: Tensor) -> Prediction:
        """The same for each image without its own patches."""
        if self.oddness is not None:
            was_learnt = self.nearest.candidates.parts_of(image) >= 0
            return self._prediction(*self.oddness.left_out(self._distances_left_out(image), was_learnt))
        found = self.nearest.left_out(self._describe(image), image)
        scores = torch.cat([self._score(nearest) for nearest in found])
        return self._prediction(torch.cat([nearest.distances for nearest in found]), scores)

    def choices(self) -> list[str]:
        """How much of what is usual at a place all places tell, and why, in words."""
        return [] if self.oddness is None else self.oddness.choices("good parts' distances from the others")

    def _prediction(self, distances: Tensor, score: Tensor) -> Prediction:
        """What was found at the places, (B, P), as a map, and the score."""
        patch_map = distances.view(-1, 1, self.height, self.width)
        return Prediction(self.smooth(upsample(patch_map, self.config.image_size, align_corners=False)), score)

    def _score(self, nearest: Nearest) -> Tensor:
        """The largest distance, weighted by how rare the patch nearest to it is (eq. 7), (B,)."""
        distances, vectors, rows, known = nearest
        score, place = distances.max(dim=1, keepdim=True)
        if self.config.neighbours == 1:
            return score.squeeze(1)
        tested = vectors.gather(1, place.unsqueeze(2).expand(-1, -1, vectors.shape[2])).squeeze(1)
        rarity = PatchMemory.rarity(tested, rows.gather(1, place).squeeze(1), self.config.neighbours, known)
        return score.squeeze(1) * rarity

    def phases(self, textures: TextureSource) -> Iterator[Phase]:
        """Passes over the good images: which parts there are, their patches, and how far each lies from the others."""
        yield from patch_phases(self.nearest, self._describe)
        if (oddness := self.oddness) is not None:
            yield left_out_phase(
                self.nearest.candidates,
                {"distances": oddness.positions},
                lambda image: {"distances": self._distances_left_out(image)},
                lambda distances: oddness.learn(distances["distances"]),
            )

    def _distances_left_out(self, image: Tensor) -> Tensor:
        """How far each patch of the images lies from the nearest of all other images, (B, P)."""
        return self.nearest.distances_left_out(self._describe(image), image)

    def _describe(self, image: Tensor) -> Tensor:
        """Vectors (B, P, D) of the patches."""
        return self.patches(image).flatten(1, 2)
