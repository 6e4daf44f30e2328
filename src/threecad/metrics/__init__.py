"""How well scores and maps tell defects from good parts; exact, on raw values, without torch.

All metrics are fractions in [0, 1], and higher is better except for `fpr_at_95_tpr`.
"""

from threecad.metrics.image import ImageScores, image_scores
from threecad.metrics.pixel import PixelScores, pixel_scores

__all__ = ["ImageScores", "PixelScores", "image_scores", "pixel_scores"]
