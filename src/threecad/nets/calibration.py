"""What is unusual about a part, measured in several ways and weighed by what its set shows (ours; an option of CFRG).

Three kinds of distances, each in units of how much it varies where nothing is wrong:

- The fine distance compares the recovered features with the teacher's, by what they are on good parts. Masked by the
  segmentation it is `segmented`, at the coarsest scale alone it is `unusual`.
- The coarse distance compares the features of all branches with the teacher's, at the coarsest scale. Receptive fields
  reach beyond a defect, so features beside it change too. Good parts never show this, and what was learnt from them
  would mark a halo around each defect. This one is therefore fitted on synthetically altered parts, at the positions
  that are not altered.
- The nearest distance compares the teacher's own features with those of good parts, at the same place or around it:
  where parts lie a few pixels off, what is known of each place says little.

Map and score are weighted sums of their smoothed maps and of these maps' peaks:

    map = Σ_k w_k distance_k / spread_k          score = Σ_k v_k (peak_k - mean_k) / spread_k

Means and spreads are those of good parts, each as if it had been left out. How much a position's covariance takes from
those of all others follows from how many parts there are and how much positions differ (`nets.gaussians`). The weights
w and v, and with them how far to look around, are those that tell altered parts from good ones best (`nets.weighing`).
Only `segmented` has a share that is not learnt, one in four, as there are four distances: it was taught on altered
parts, finds nearly everything in others, of whatever kind, and so they cannot tell what it is worth on real defects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from threecad.nets.differences import CoarseDistance, Comparison, FineDistances, channel_step
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.nearest import STRIDE, NearestPatches
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.nets.weighing import Weighing
from threecad.records import Prediction

REACHES = (0, 1)
"""How many positions around its own a patch's nearest may be; one of them is chosen."""

TAUGHT = {0: 1}
"""Shares, of four, that altered parts cannot tell: that of the segmented distance."""

DISTANCES = ("segmented", "unusual", "coarse", *(f"nearest within {reach * STRIDE} px" for reach in REACHES))
"""What is weighed, by name. Of the last, a sum takes one."""

PATCHES, CANDIDATES = 32_768, 131_072
"""Most patches of good parts that are kept, and most that those are made of."""

EVERY_PX = 4
"""Of a map's pixels, those that weights are learnt from lie so far apart along both axes; maps are smooth."""


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
        used = [len(range(0, channels, channel_step(channels))) for channels in teacher.channels]
        self.fine = FineDistances(positions, used)
        self.coarse = CoarseDistance(positions[-1], branches * used[-1])
        self.nearest = NearestPatches(image_size, sum(used), PATCHES, CANDIDATES)
        self.places = Standardisation(len(DISTANCES), least_share=0.0)  # the distances have different units
        self.peaks = Standardisation(len(DISTANCES), least_share=0.0)
        around = range(len(DISTANCES) - len(REACHES), len(DISTANCES))
        self.map_weights = Weighing(len(DISTANCES), kinds, exclusive=around, given=TAUGHT)
        self.score_weights = Weighing(len(DISTANCES), kinds, exclusive=around, given=TAUGHT)

    def forward(self, comparison: Comparison) -> Prediction:
        """anomaly_map and score as in the file's head."""
        distances = self.measure(comparison)
        weights = self.map_weights.weight / self.places.spread
        anomaly_map = (distances * weights.view(-1, 1, 1)).sum(dim=1, keepdim=True)
        return Prediction(anomaly_map, self.score_weights(self.peaks(_peaks(distances))))

    def measure(self, comparison: Comparison, image: Tensor | None = None, learnt: Comparison | None = None) -> Tensor:
        """The smoothed maps (B, K, H, W) of all `DISTANCES`.

        Args:
            comparison: of the images to be judged.
            image, learnt: the good parts (B, 3, H, W) that these are, or from which they were made, and what is
                compared of them, if the fit has seen them. Each is measured as if it had been left out: parts that were
                learnt from look more usual than those to come.
        """
        fine, unusual = self.fine(comparison, learnt)
        coarse = self.coarse(comparison, image)
        patches = thinned(comparison.teacher)
        size = comparison.mask.shape[-2:]
        nearest = [upsample(self.nearest(patches, reach, image), size, align_corners=False) for reach in REACHES]
        distances = (fine * comparison.mask, unusual, coarse, *nearest)
        return torch.cat([self.smooth(distance) for distance in distances], dim=1)

    def usual(self, image: Tensor, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """What `places` and `peaks` are fitted to, (…, K) each: good parts (B, 3, H, W), each as if left out."""
        distances = self.measure(comparison, image, comparison)
        return _thinned_places(distances), _peaks(distances)

    def add_evidence(
        self,
        sums: Sequence[Mapping[str, Tensor]],
        image: Tensor,
        learnt: Comparison,
        comparison: Comparison,
        altered: Tensor,
    ) -> None:
        """Count what good parts and the same ones altered look like under every form, in place.

        Args:
            sums: `map_weights.empty_sums()` and `score_weights.empty_sums()`.
            image, learnt: the good parts (B, 3, H, W), and what is compared of them.
            comparison: of the altered ones.
            altered: where they are, (B, 1, H, W) of 0 and 1.
        """
        is_altered = altered.flatten(1).amax(dim=1) > 0  # a mask can be empty
        good, changed = (self.measure(one, image, learnt) for one in (learnt, comparison))
        for distances, mask, kept in (
            (good, torch.zeros_like(altered), torch.ones_like(is_altered)),
            (changed, altered, is_altered),
        ):
            places = self.places(_thinned_places(distances))
            self.map_weights.add(sums[0], places.flatten(0, -2), _thinned_places(mask).flatten() > 0)
            peaks = self.peaks(_peaks(distances))[kept]
            self.score_weights.add(sums[1], peaks, mask.flatten(1).amax(dim=1)[kept] > 0)

    def choices(self, kinds: Sequence[str]) -> list[str]:
        """What has been learnt of the form, and on what evidence, in words.

        Args:
            kinds: names of the kinds of alterations, in the order in which they were tried.
        """
        fine, coarse = (
            ", ".join(f"{100 * float(one.shared.mean()):.0f} %" for one in part.gaussians())
            for part in (self.fine, self.coarse)
        )
        return [
            f"map = {self.map_weights.said(DISTANCES, kinds)}",
            f"score = {self.score_weights.said(DISTANCES, kinds)}",
            f"of its covariance a position takes from all others {fine} at the fine distance's scales, {coarse} in the "
            "coarse one's halves, by the number of parts and by how much positions differ",
        ]


def thinned(features: Sequence[Tensor]) -> list[Tensor]:
    """The evenly spaced channels of each scale that distances use."""
    return [scale[:, :: channel_step(scale.shape[1])] for scale in features]


def _peaks(distances: Tensor) -> Tensor:
    """The largest value (B, K) of each map."""
    return distances.amax(dim=(2, 3))


def _thinned_places(maps: Tensor) -> Tensor:
    """Values (B, h, w, K) of maps (B, K, H, W) at pixels `EVERY_PX` apart."""
    return maps[:, :, EVERY_PX // 2 :: EVERY_PX, EVERY_PX // 2 :: EVERY_PX].permute(0, 2, 3, 1)
