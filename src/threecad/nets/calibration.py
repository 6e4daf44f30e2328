"""What is unusual about a part, measured in several ways and weighed by what its set shows (ours; an option of CFRG).

Three kinds of distances, each in units of how much it varies where nothing is wrong:

- The fine distance compares the recovered features with the teacher's, at every scale: that of Mahalanobis, by the
  mean and the covariance that good parts have at each position. Masked by the segmentation it is `segmented`, at the
  coarsest scale alone it is `unusual`.
- The coarse distance compares the features of all branches with the teacher's, at the coarsest scale. Receptive fields
  reach beyond a defect, so features beside it change too. Good parts never show this, and a Gaussian fitted on them
  would mark a halo around each defect. This one is therefore fitted on synthetically altered parts, at the positions
  that are not altered.
- The nearest distance compares the teacher's own features with those of good parts (`nets.nearest`), at the same place
  or around it: where parts lie a few pixels off, what is known of each place says little.

Map and score are weighted sums of these, the score of their peaks:

    map = Σ_k w_k distance_k / spread_k          score = Σ_k v_k (peak_k - mean_k) / spread_k

Nothing here is chosen by hand. Means and spreads are those of good parts, each as if it had been left out. How much a
position's covariance takes from those of all others follows from how many parts there are and how much positions differ
(`nets.gaussians`). The weights w and v, and with them how far to look around, are those that tell altered parts from
good ones best (`nets.weighing`), altered in ways that the segmenter has not learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.nets.gaussians import PositionGaussians
from threecad.nets.maps import GaussianBlur, full_precision, upsample
from threecad.nets.nearest import STRIDE, NearestPatches
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.nets.sums import joined, of_part
from threecad.nets.weighing import Weighing
from threecad.records import Prediction

REACHES = (0, 1)
"""How many positions around its own a patch's nearest may be; one of them is chosen."""

DISTANCES = ("segmented", "unusual", "coarse", *(f"nearest within {reach * STRIDE} px" for reach in REACHES))
"""What is weighed, by name. Of the last, a sum takes one."""

MOST_CHANNELS = 128
"""Most channels of a scale that a distance uses. A Σ of 1,024 channels at each position would take 1 GB."""

PATCHES, CANDIDATES = 32_768, 131_072
"""Most patches of good parts that are kept, and that those are made of."""

EVERY_PX = 4
"""Of a map's pixels, those that weights are learnt from lie so far apart along both axes; maps are smooth."""


class Comparison(NamedTuple):
    """What a calibration compares: the features of one batch of images, and the mask segmented from them."""

    teacher: Sequence[Tensor]  # [(B, C_i, H_i, W_i)], fine to coarse
    recovered: Sequence[Tensor]  # likewise: what should equal the teacher's features at every scale
    coarsest: Sequence[Tensor]  # one (B, C_3, H_3, W_3) a branch: what should equal the teacher's coarsest features
    mask: Tensor  # (B, 1, H, W) in [0, 1]


class Calibration(nn.Module):
    """Map and score from a `Comparison`, in units of what is usual.

    Args:
        teacher: the network whose features the others are compared with.
        branches: how many features `Comparison.coarsest` holds.
        smooth: filter of the distances' maps.
        image_size: height and width of the images.
        kinds: how many kinds of alterations the weights are learnt from.
    """

    def __init__(
        self, teacher: Pyramid, branches: int, smooth: GaussianBlur, image_size: Sequence[int], kinds: int
    ) -> None:
        super().__init__()
        self.smooth = smooth
        height, width = image_size
        positions = [(height // stride) * (width // stride) for stride in teacher.strides]
        used = [len(range(0, channels, _channel_step(channels))) for channels in teacher.channels]
        self.fine = nn.ModuleList(PositionGaussians(*shape) for shape in zip(positions, used, strict=True))
        self.coarse = PositionGaussians(positions[-1], branches * used[-1])
        self.nearest = NearestPatches(image_size, sum(used), PATCHES, CANDIDATES)
        around = range(len(DISTANCES) - len(REACHES), len(DISTANCES))
        self.places = Standardisation(len(DISTANCES), least_share=0.0)  # the distances have different units
        self.peaks = Standardisation(len(DISTANCES), least_share=0.0)
        self.map_weights = Weighing(len(DISTANCES), kinds, exclusive=around)
        self.score_weights = Weighing(len(DISTANCES), kinds, exclusive=around)

    def forward(self, comparison: Comparison) -> Prediction:
        """anomaly_map and score as in the file's head."""
        distances = self.measure(comparison)
        weights = self.map_weights.weight / self.places.spread
        anomaly_map = (distances * weights.view(-1, 1, 1)).sum(dim=1, keepdim=True)
        return Prediction(anomaly_map, self.score_weights(self.peaks(_peaks(distances))))

    def measure(self, comparison: Comparison, learnt: Tensor | None = None, altered: bool = False) -> Tensor:
        """The smoothed maps (B, K, H, W) of all `DISTANCES`.

        Args:
            comparison: of the images to be judged.
            learnt: the good parts (B, 3, H, W) that these are, or from which they were made, if the fit has seen them.
                Each is measured as if it had been left out: parts that were learnt from look more usual than new ones.
            altered: whether they are altered, so that what was learnt of them at each position is another thing.
        """
        teacher, recovered, coarsest, mask = comparison
        gaussians = self._fine()
        squares = []
        for scale, features, others in zip(gaussians, teacher, recovered, strict=True):
            differences = _differences(features, others)
            if learnt is None or altered:
                distance = scale(differences)
            else:
                distance = scale.left_out(scale(differences.double())).float()
            squares.append(_as_map(distance.square(), features.shape, mask))
        channels = [scale.mean.shape[1] for scale in gaussians]
        unusual = (squares[-1] / channels[-1]).sqrt()
        fine = (torch.stack(squares).sum(dim=0) / sum(channels)).sqrt()
        squared = self.coarse(_coarse_differences(teacher, coarsest)).square()
        coarse = (_as_map(squared, teacher[-1].shape, mask) / self.coarse.mean.shape[1]).sqrt()
        around = []
        for reach in REACHES:
            patches = _thinned(teacher)
            nearest = self.nearest(patches, reach) if learnt is None else self.nearest.left_out(patches, reach, learnt)
            around.append(upsample(nearest.unsqueeze(1), mask.shape[-2:], align_corners=False))
        return torch.cat([self.smooth(distance) for distance in (fine * mask, unusual, coarse, *around)], dim=1)

    def empty_good_sums(self) -> dict[str, Tensor]:
        """Sums over no good parts: for the fine Gaussians, and which parts there are."""
        return joined([*(scale.empty_sums() for scale in self._fine()), self.nearest.empty_counts()])

    def add_good(self, sums: Mapping[str, Tensor], image: Tensor, comparison: Comparison) -> None:
        """Add the differences on good parts (B, 3, H, W) to the sums, in place."""
        for i, (features, others) in enumerate(zip(comparison.teacher, comparison.recovered, strict=True)):
            PositionGaussians.add(of_part(sums, i), _differences(features, others))
        self.nearest.count(of_part(sums, len(self.fine)), image)

    def conclude_good(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the fine Gaussians to the sums; `ridge` is the share of the mean variance added to each variance."""
        for i, scale in enumerate(self._fine()):
            scale.conclude(of_part(sums, i), ridge, relative=True, borrow=True)
        self.nearest.conclude_counts(of_part(sums, len(self.fine)))

    def add_patches(self, sums: Mapping[str, Tensor], image: Tensor, teacher: Sequence[Tensor]) -> None:
        """Add the patches of good parts (B, 3, H, W) to `nearest.empty_patches()`, in place."""
        self.nearest.add(sums, image, _thinned(teacher))

    def add_coarse(self, sums: Mapping[str, Tensor], comparison: Comparison, altered: Tensor) -> None:
        """Add the differences on altered parts to the sums, in place, where they are not `altered` (B, 1, H, W)."""
        counted = F.adaptive_max_pool2d(altered, comparison.teacher[-1].shape[-2:]).flatten(1).T == 0
        PositionGaussians.add(sums, _coarse_differences(comparison.teacher, comparison.coarsest), counted)

    def conclude_coarse(self, sums: Mapping[str, Tensor], ridge: float) -> None:
        """Fit the coarse Gaussians to the sums; `ridge` as in `conclude_good`."""
        self.coarse.conclude(sums, ridge, relative=True, borrow=True)

    def usual(self, image: Tensor, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Of good parts, each left out: what `places` and `peaks` are fitted to, (…, K) each."""
        distances = self.measure(comparison, learnt=image)
        return _thinned_places(distances), _peaks(distances)

    def add_evidence(
        self,
        sums: Sequence[Mapping[str, Tensor]],
        image: Tensor,
        unaltered: Comparison,
        comparison: Comparison,
        altered: Tensor,
    ) -> None:
        """Count what good parts (B, 3, H, W) and the same ones altered look like under every form, in place.

        Args:
            sums: `map_weights.empty_sums()` and `score_weights.empty_sums()`.
            unaltered, comparison: of the good and of the altered ones.
            altered: where they are, (B, 1, H, W) of 0 and 1.
        """
        good, changed = self.measure(unaltered, learnt=image), self.measure(comparison, learnt=image, altered=True)
        for distances, mask in ((good, torch.zeros_like(altered)), (changed, altered)):
            places = self.places(_thinned_places(distances))
            self.map_weights.add(sums[0], places.flatten(0, -2), _thinned_places(mask).flatten() > 0)
            found = mask.flatten(1).amax(dim=1) > 0
            kept = found if distances is changed else ~found  # of those altered, the ones whose mask is not empty
            self.score_weights.add(sums[1], self.peaks(_peaks(distances))[kept], found[kept])

    def choices(self, kinds: Sequence[str]) -> list[str]:
        """What has been learnt of the form, and on what evidence, in words.

        Args:
            kinds: names of the kinds of alterations, in the order in which they were tried.
        """
        borrowed = [f"{100 * float(one.shared.mean()):.0f} %" for one in (*self._fine(), self.coarse)]
        return [
            f"map = {self.map_weights.said(DISTANCES, kinds)}",
            f"score = {self.score_weights.said(DISTANCES, kinds)}",
            f"covariance that a position takes from all others: {', '.join(borrowed[:-1])} at the scales of the fine "
            f"distance, {borrowed[-1]} for the coarse one (by the number of parts and by how much positions differ)",
        ]

    def _fine(self) -> list[PositionGaussians]:
        return cast("list[PositionGaussians]", list(self.fine))


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


def _thinned(features: Sequence[Tensor]) -> list[Tensor]:
    """The evenly spaced channels of each scale that distances use."""
    return [scale[:, :: _channel_step(scale.shape[1])] for scale in features]


def _as_map(values: Tensor, shape: Sequence[int], mask: Tensor) -> Tensor:
    """Values (B, P) at the positions of features of a shape (B, C, h, w) as a map (B, 1, H, W) like the mask."""
    return upsample(values.view(-1, 1, *shape[-2:]), mask.shape[-2:])


def _peaks(distances: Tensor) -> Tensor:
    """The largest value (B, K) of each map."""
    return distances.amax(dim=(2, 3))


def _thinned_places(maps: Tensor) -> Tensor:
    """Values (B, h, w, K) of maps (B, K, H, W) at pixels `EVERY_PX` apart."""
    return maps[:, :, EVERY_PX // 2 :: EVERY_PX, EVERY_PX // 2 :: EVERY_PX].permute(0, 2, 3, 1)
