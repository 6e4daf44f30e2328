"""An anomaly map laid over its image: colour where it is unusual, a line around what is more than that.

One scale serves all pictures of a run, so that a good part looks calm and a defect stands out. The line is that of the
regions which a verdict lists; a run that cannot judge gets a scale for each image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threecad.verdicts import Verdicts

_INFERNO = (  # ten points of the perceptually uniform colour map "inferno" (CC0)
    *((0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96)),
    *((207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164)),
)
COLOURS = np.stack(
    [np.interp(np.linspace(0, 9, 256), np.arange(10), channel) for channel in zip(*_INFERNO, strict=True)], axis=1
).astype(np.float32)
"""(256, 3) float32 grey levels, dark to bright."""

LINE = (64, 224, 255)  # stands out from every metal and from every colour of the map
STRONGEST = 0.8  # opacity of the brightest colour
REACH = 2.0  # spreads above the threshold at which the colours end
GAP = 128  # grey level between panels
STRIP_ROWS = 256  # blended together


@dataclass(frozen=True, slots=True)
class Scale:
    """Which map values are shown how."""

    low: float  # and below: nothing
    threshold: float  # and above: inside the line
    high: float  # and above: the brightest colour

    @classmethod
    def of_good(cls, verdicts: Verdicts, category: str | None = None) -> Scale | None:
        """From the largest values of good parts' maps: colour begins at their median, the line is around regions.

        None where there are too few of them to judge.
        """
        if not verdicts.can_judge(category):
            return None
        threshold = verdicts.limits(category).region.threshold
        median = float(np.median(verdicts.good.peaks(category)))
        spread = max(threshold - median, 1e-3 * abs(median), 1e-12)
        return cls(threshold - spread, threshold, threshold + REACH * spread)

    @classmethod
    def of_map(cls, anomaly_map: np.ndarray) -> Scale:
        """From one map: its median to its maximum, the line half-way."""
        low, high = float(np.median(anomaly_map)), float(anomaly_map.max())
        high = max(high, low + 1e-12)
        return cls(low, (low + high) / 2, high)

    def apply(self, anomaly_map: np.ndarray) -> np.ndarray:
        """The map in [0, 1]."""
        return np.clip((anomaly_map - self.low) / (self.high - self.low), 0, 1).astype(np.float32)


def colour(anomaly_map: np.ndarray, scale: Scale) -> np.ndarray:
    """The map (H, W) as a picture (H, W, 3) uint8 of its own."""
    return COLOURS[(255 * scale.apply(anomaly_map)).astype(np.uint8)].astype(np.uint8)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, scale: Scale) -> np.ndarray:
    """The image (H, W, 3) uint8 with the map (H, W) over it, the more opaque the more unusual, and its contour.

    Blended strip by strip: at 20 megapixels whole arrays of floats would need 800 MB.
    """
    blended = np.empty_like(image)
    for start in range(0, len(image), STRIP_ROWS):
        rows = slice(start, start + STRIP_ROWS)
        share = scale.apply(anomaly_map[rows])
        opacity = (STRONGEST * np.sqrt(share))[..., None]
        blended[rows] = image[rows] * (1 - opacity) + COLOURS[(255 * share).astype(np.uint8)] * opacity
    return outlined(blended, anomaly_map > scale.threshold)


def outlined(image: np.ndarray, region: np.ndarray, line: tuple[int, int, int] = LINE) -> np.ndarray:
    """The image (H, W, 3) uint8 with a line just around a region (H, W) of it, 1 px wide for every 256 px."""
    from scipy import ndimage

    width = max(1, round(max(region.shape) / 256))
    near = ndimage.maximum_filter(region.view(np.uint8), 2 * width + 1, mode="constant").view(bool)
    drawn = image.copy()
    drawn[near & ~region] = line
    return drawn


def side_by_side(
    image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray, scale: Scale, gap_px: int = 4
) -> np.ndarray:
    """Image, ground truth, map and contour in one picture (H, 4 W + 3 gap, 3) uint8.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) of 0 and 1; None where nobody knows.
        anomaly_map: (H, W).
    """
    truth = image // 3 if mask is None else np.where(mask[..., None] > 0, np.uint8(255), image // 3)
    found = outlined(image, anomaly_map > scale.threshold)
    between = np.full((image.shape[0], gap_px, 3), GAP, np.uint8)
    panels = (image, between, truth, between, colour(anomaly_map, scale), between, found)
    return np.concatenate(panels, axis=1)
