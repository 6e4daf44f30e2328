"""Distances in units of how much they vary where nothing is wrong (ours, not the paper's; an option of CFRG).

CFRG finds defects by how far recovered and student features lie from the teacher's. Some distance remains on good parts
too, more at some positions than at others. Here every position has a mean μ and a covariance Σ of the difference d
between two unit feature vectors, and the distance is that of Mahalanobis, M = sqrt((d - μ)^T Σ^-1 (d - μ)). Where
nothing is wrong, M² is about the number of channels. There are two such distances:

- The fine distance compares the recovered features with the teacher's, at every scale. Its μ and Σ are those of good
  parts.
- The coarse distance compares the features of all branches with the teacher's, at the coarsest scale. Receptive fields
  reach beyond a defect, so features beside it change too. Good parts never show this, and a Gaussian fitted on them
  would mark a halo around each defect. This one is therefore fitted on synthetically altered parts, at the positions
  that are not altered. Some positions nearly always are, so that each Σ is drawn towards that of all positions, as far
  as what was seen makes likely (`nets.gaussians.likeliest_prior`).

What is known of a position helps only where parts lie still, and where there are enough of them. So there is a third
distance that looks around:

- The nearest distance compares the teacher's features at a position with those that good parts have there or next to
  it, and takes the nearest (`nets.nearest_patches`).

How much it counts is told by the good parts, each measured as if it had been left out of the fits:

    r_p = mean of M² / channels of the fine distance at the coarsest scale. 1 where positions tell all about the next
          good part; more where there are few parts, or each is different.
    r_n = mean of squared nearest distances / values. 1 where the nearest patch is as far as the mean of the position
          is; less where parts move, since then others have shown the same patch next to it.
    u   = 1 - r_n / r_p, and at least 0: the share that patches around explain of what positions leave unexplained.

Map and score are then

    map   = mask · fine distance + 0.3 · ((1 - u) · coarse distance + u · nearest distance)
    score = max((1 - u) · o(fine distance at the coarsest scale),
                u · o(nearest distance),
                u · o(mask · fine distance, the largest around each patch))

with the segmented mask, distances divided by the root of their number of values, the map's parts smoothed, and o(x) how
odd the distances x of a part are, be they few that are large or many (`nets.oddness`). So a part is as odd as its
places say, or what is around them, or what is segmented, whichever is most; what tells little of these parts has little
say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, full_precision, upsample
from threecad.nets.nearest_patches import NearestPatches
from threecad.nets.oddness import Oddness
from threecad.nets.patches import PatchPooling
from threecad.nets.pyramid import Pyramid
from threecad.nets.sums import joined, of_part
from threecad.records import Prediction

COARSE_WEIGHT = 0.3
"""Weight of the coarse and the nearest distance in the map. Values from 0.1 to 0.6 gave nearly equal results."""

MOST_CHANNELS = 128
"""Most channels of a scale that a distance uses. A Σ of 1,024 channels at each position would take 1 GB."""

PATCH_STRIDE = 8
"""Image pixels between two patches of the nearest distance."""

REACH = 1
"""How many patches away the nearest may be."""

LEAST_SQUARE = 1e-6
"""Added to mean squares, lest one be divided by nothing where good parts do not differ at all."""

RIDGE = 0.001
"""Share of the mean variance that is added to every variance of the patches' values."""


class Comparison(NamedTuple):
    """What a calibration compares: the features of one batch of images."""

    teacher: Sequence[Tensor]  # [(B, C_i, H_i, W_i)], fine to coarse
    recovered: Sequence[Tensor]  # likewise: what should equal the teacher's features at every scale
    coarsest: Sequence[Tensor]  # one (B, C_3, H_3, W_3) a branch: what should equal the teacher's coarsest features


class Measured(NamedTuple):
    """What a calibration finds in B images: distances at their own positions, and smoothed maps (B, 1, H, W)."""

    unusual: Tensor  # (B, P_3): the fine distance at each position of the coarsest scale
    to_nearest: Tensor  # (B, P): the nearest distance of each patch
    around_patches: Tensor  # (B, P): the largest of what is segmented around each patch
    nearest: Tensor  # the nearest distance as a map
    segmented: Tensor  # mask · fine distance
    coarse: Tensor

    def evidence(self) -> dict[str, Tensor]:
        """What a part may be odd by."""
        return {"unusual": self.unusual, "nearest": self.to_nearest, "segmented": self.around_patches}


class Calibration(nn.Module):
    """Map and score from a `Comparison` and a mask, in units of what is usual.

    Args:
        teacher: the network whose features the others are compared with.
        branches: how many features `Comparison.coarsest` holds.
        smooth: filter of the distances' maps.
        image_size: height and width of the images.
        patches: most patches of good parts that the nearest distance remembers.
    """

    usual_squares: Tensor  # (2,), r_p and r_n

    def __init__(
        self, teacher: Pyramid, branches: int, smooth: GaussianBlur, image_size: Sequence[int], patches: int
    ) -> None:
        super().__init__()
        self.smooth = smooth
        height, width = image_size
        positions = [(height // stride) * (width // stride) for stride in teacher.strides]
        used = [len(range(0, channels, _channel_step(channels))) for channels in teacher.channels]
        self.fine = nn.ModuleList(PositionGaussians(*shape) for shape in zip(positions, used, strict=True))
        self.coarse = PositionGaussians(positions[-1], branches * used[-1], shared=True)
        self.pool = PatchPooling(used, teacher.strides, most_values=None, side=1, stride=PATCH_STRIDE)
        self.grid = (height // PATCH_STRIDE, width // PATCH_STRIDE)
        self.nearest = NearestPatches(
            self.grid, self.pool.values, patches, patches, reach=REACH, ridge=RIDGE, own_units=True
        )
        places = {"unusual": positions[-1], "nearest": self.grid[0] * self.grid[1]}
        places["segmented"] = places["nearest"]
        self.oddness = nn.ModuleDict({name: Oddness(of) for name, of in places.items()})
        self.register_buffer("usual_squares", torch.zeros(2))

    def forward(self, comparison: Comparison, mask: Tensor) -> Prediction:
        """anomaly_map and score as in the file's head, from what is compared and the segmented `mask`."""
        measured = self.measure(comparison, mask)
        unexplained = self.unexplained()
        odd = torch.stack([self._oddness()[name](of)[1] for name, of in measured.evidence().items()], dim=1)
        weights = torch.stack([1 - unexplained, unexplained, unexplained])
        score = (weights * odd).amax(dim=1)
        return Prediction(measured.segmented + COARSE_WEIGHT * self.around(measured), score)

    def around(self, measured: Measured) -> Tensor:
        """What the map adds to what is segmented, (B, 1, H, W): the coarse and the nearest distance, mixed by u."""
        unexplained = self.unexplained()
        return (1 - unexplained) * measured.coarse + unexplained * measured.nearest

    def unexplained(self) -> Tensor:
        """u, (): the share that patches around explain of how far a good part is from what its positions tell."""
        position, nearest = self.usual_squares
        return (1 - (nearest + LEAST_SQUARE) / (position + LEAST_SQUARE)).clamp_min(0)

    def choices(self) -> list[str]:
        """How much the nearest distance counts, and how much positions share, and why, in words."""
        if float(self._fine()[-1].count.max()) < 2:
            return ["one good part alone tells nothing of how far the next may lie from it"]
        position, nearest = self.usual_squares.sqrt().tolist()
        return [
            f"left out, a good part lies {position:.2f} spreads from what the others show at each place and "
            f"{nearest:.2f} spreads from their nearest patches around it: such patches get "
            f"{100 * float(self.unexplained()):.0f} % of the coarse map",
            *self.coarse.choices("altered parts beside their alteration"),
            *(line for name, odd in self._oddness().items() for line in odd.choices(f"good parts' {name} distances")),
        ]

    def measure(self, comparison: Comparison, mask: Tensor, learnt: Tensor | None = None) -> Measured:
        """The distances of each part, and their maps.

        The mask gives the map sharp edges; the others find what the mask misses. The unusual distances rank parts best
        where good ones look alike and lie still, the nearest where they move, the segmented where they differ and
        defects stand out.

        Args:
            comparison: of the images to be judged.
            mask: (B, 1, H, W) in [0, 1], segmented from them.
            learnt: these very images (B, 3, H, W), if the fits have learnt from them. Each is then measured as if it
                had been left out: parts that were learnt from would otherwise look more usual than new ones.
        """
        teacher, recovered, coarsest = comparison
        gaussians = self._fine()
        distances = []
        for scale, features, others in zip(gaussians, teacher, recovered, strict=True):
            distance = scale(_differences(features, others))
            distances.append(distance if learnt is None else scale.left_out(distance))
        squares = [_as_map(distance.square(), at, mask) for distance, at in zip(distances, teacher, strict=True)]
        channels = [scale.mean.shape[1] for scale in gaussians]
        fine = (torch.stack(squares).sum(dim=0) / sum(channels)).sqrt()
        squared = self.coarse(_coarse_differences(teacher, coarsest)).square()
        coarse = (_as_map(squared, teacher[-1], mask) / self.coarse.mean.shape[1]).sqrt()
        vectors = self.vectors(teacher)
        find = self.nearest
        to_nearest = find(vectors).distances if learnt is None else find.distances_left_out(vectors, learnt)
        to_nearest = to_nearest / self.pool.values**0.5
        nearest = upsample(to_nearest.view(-1, 1, *self.grid), mask.shape[-2:], align_corners=False)
        segmented = self.smooth(fine * mask)
        return Measured(
            unusual=distances[-1] / channels[-1] ** 0.5,
            to_nearest=to_nearest,
            around_patches=F.max_pool2d(segmented, mask.shape[-1] // self.grid[1]).flatten(1),
            nearest=self.smooth(nearest),
            segmented=segmented,
            coarse=self.smooth(coarse),
        )

    def vectors(self, teacher: Sequence[Tensor]) -> Tensor:
        """What the nearest distance compares: the teacher's features (B, P, D) at every patch."""
        with full_precision(teacher[0]):
            thinned = [scale[:, :: _channel_step(scale.shape[1])].float() for scale in teacher]
            return self.pool(thinned).flatten(1, 2)

    def places(self) -> dict[str, int]:
        """P of each kind of `Measured.evidence`, (B, P)."""
        return {name: odd.positions for name, odd in self._oddness().items()}

    def empty_fine_sums(self) -> dict[str, Tensor]:
        """Sums for the fine Gaussians over no parts."""
        return joined(scale.empty_sums() for scale in self._fine())

    def add_fine(self, sums: Mapping[str, Tensor], comparison: Comparison) -> None:
        """Add the differences on good parts to the sums, in place."""
        for i, (features, others) in enumerate(zip(comparison.teacher, comparison.recovered, strict=True)):
            PositionGaussians.add(of_part(sums, i), _differences(features, others))

    def conclude_fine(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the fine Gaussians to the sums; `ridge` is the share of the mean variance added to each variance."""
        for i, scale in enumerate(self._fine()):
            scale.conclude(of_part(sums, i), ridge, relative=True)

    def empty_coarse_sums(self) -> dict[str, Tensor]:
        """Sums for the coarse Gaussians over no parts."""
        return self.coarse.empty_sums()

    def add_coarse(self, sums: Mapping[str, Tensor], comparison: Comparison, altered: Tensor) -> None:
        """Add the differences on altered parts to the sums, in place, where they are not `altered` (B, 1, H, W)."""
        counted = F.adaptive_max_pool2d(altered, comparison.teacher[-1].shape[-2:]).flatten(1).T == 0
        PositionGaussians.add(sums, _coarse_differences(comparison.teacher, comparison.coarsest), counted)

    def conclude_coarse(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the coarse Gaussians to the sums; `ridge` as in `conclude_fine`."""
        self.coarse.conclude(sums, ridge, relative=True)

    def learn_usual(self, evidence: Mapping[str, Tensor]) -> None:
        """Fit u and oddness to the `Measured.evidence` of good parts, each measured as if it had been left out."""
        squares = [evidence[name].square().mean() for name in ("unusual", "nearest")]
        self.usual_squares.copy_(torch.stack(squares))
        for name, odd in self._oddness().items():
            odd.learn(evidence[name])

    def _fine(self) -> list[PositionGaussians]:
        return cast("list[PositionGaussians]", list(self.fine))

    def _oddness(self) -> dict[str, Oddness]:
        return cast("dict[str, Oddness]", dict(self.oddness.items()))


def _differences(features: Tensor, others: Tensor) -> Tensor:
    """Differences (H·W, B, D) of the unit vectors of two features (B, C, H, W), at D evenly spaced channels."""
    with full_precision(features):
        difference = F.normalize(features.float(), dim=1) - F.normalize(others.float(), dim=1)
        return difference[:, :: _channel_step(features.shape[1])].flatten(2).permute(2, 0, 1)


def _coarse_differences(teacher: Sequence[Tensor], coarsest: Sequence[Tensor]) -> Tensor:
    """Differences (P, B, branches · D) of every branch from the teacher at the coarsest scale."""
    return torch.cat([_differences(teacher[-1], branch) for branch in coarsest], dim=2)


def _channel_step(channels: int) -> int:
    """The step between channels with which at most `MOST_CHANNELS` of them are used."""
    return -(-channels // MOST_CHANNELS)


def _as_map(values: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """Values (B, P) at the positions of `features` as a map (B, 1, H, W) of the mask's size."""
    return upsample(values.view(-1, 1, *features.shape[-2:]), mask.shape[-2:])
