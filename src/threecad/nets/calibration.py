"""What is unusual about a part, measured in several ways, each in its spread over good parts (ours; an option of CFRG).

Three kinds of distances, each in units of how much it varies where nothing is wrong:

- The fine distance compares the recovered features with the teacher's, by what they are on good parts. Masked by the
  segmentation it is `segmented`, at the coarsest scale alone it is `unusual`.
- The coarse distance compares the features of all branches with the teacher's, at the coarsest scale. Receptive fields
  reach beyond a defect, so features beside it change too. Good parts never show this, and what was learnt from them
  would mark a halo around each defect. This one is therefore fitted on synthetically altered parts, at the positions
  that are not altered.
- The nearest distance compares the teacher's own features with those of good parts, at the same place or around it:
  where parts lie a few pixels off, what is known of each place says little.

Map and score are sums of their smoothed maps and of these maps' peaks, each in spreads of good parts:

    map = (segmented + coarse + nearest) / 3
    score = (segmented + unusual + coarse + nearest) / 4, of the peaks less their means

No share is chosen on test images: all are equal. Means and spreads are those of good parts, each as if it had been left
out. How much a position's covariance takes from those of all others follows from how many parts there are and how much
positions differ (`nets.gaussians`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from threecad.nets.differences import CoarseDistance, Comparison, FineDistances, channel_step
from threecad.nets.maps import GaussianBlur, upsample
from threecad.nets.nearest import NearestPatches
from threecad.nets.pyramid import Pyramid
from threecad.nets.standardisation import Standardisation
from threecad.records import Prediction

DISTANCES = ("segmented", "unusual", "coarse", "nearest")
IN_MAP = (0, 2, 3)
"""Which of them the map adds up; `unusual` is a scale of what `segmented` has already."""

REACH = 1
"""How many positions around its own a patch's nearest may be."""

PATCHES, CANDIDATES = 32_768, 131_072
"""Most patches of good parts that are kept, and most that those are made of."""

EVERY_PX = 4
"""Of a map's pixels, those that spreads are learnt from lie so far apart along both axes; maps are smooth."""


class Calibration(nn.Module):
    """Map and score from a `Comparison`, in units of what is usual.

    Args:
        teacher: the network whose features the others are compared with.
        branches: how many features `Comparison.coarsest` holds.
        smooth: filter of the distances' maps.
        image_size: height and width of the images.
    """

    def __init__(self, teacher: Pyramid, branches: int, smooth: GaussianBlur, image_size: Sequence[int]) -> None:
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

    def forward(self, comparison: Comparison) -> Prediction:
        """anomaly_map and score as in the file's head."""
        distances = self.measure(comparison)
        in_spreads = distances / self.places.spread.view(-1, 1, 1)
        anomaly_map = torch.stack([in_spreads[:, k] for k in IN_MAP], dim=1).mean(dim=1, keepdim=True)
        return Prediction(anomaly_map, self.peaks(_peaks(distances)).mean(dim=1))

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
        patches = self.nearest(thinned(comparison.teacher), REACH, image)
        nearest = upsample(patches, comparison.mask.shape[-2:], align_corners=False)
        distances = (fine * comparison.mask, unusual, coarse, nearest)
        return torch.cat([self.smooth(distance) for distance in distances], dim=1)

    def usual(self, image: Tensor, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """What `places` and `peaks` are fitted to, (…, K) each: good parts (B, 3, H, W), each as if left out."""
        distances = self.measure(comparison, image, comparison)
        return _thinned_places(distances), _peaks(distances)

    def choices(self) -> list[str]:
        """What has been learnt of the form, in words."""
        fine, coarse = (
            ", ".join(f"{100 * float(one.shared.mean()):.0f} %" for one in part.gaussians())
            for part in (self.fine, self.coarse)
        )
        spreads = ", ".join(f"{name} {float(self.places.spread[k]):.3g}" for k, name in enumerate(DISTANCES))
        return [
            f"of its covariance a position takes from all others {fine} at the fine distance's scales, {coarse} in the "
            "coarse one's halves, by the number of parts and by how much positions differ",
            f"spreads of the distances on good parts that were left out: {spreads}",
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
