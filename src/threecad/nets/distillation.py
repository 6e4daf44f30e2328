"""Where two pyramids agree: the loss and the map by which reverse distillation compares teacher and student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from threecad.nets.maps import cosine_distance, full_precision, upsample


def flattened_cosine_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Σ_i mean(1 - cos(F_i^t, F_i^s)), one cosine an image over all of a scale's C·H·W values.

    RD's published code; its paper averages a cosine a position, which learns worse (92.3 % I-AUROC on MVTec's carpet).

    Args:
        teacher: [(B, C_i, H_i, W_i)], and `student` likewise.
    """
    with full_precision(teacher[0]):
        distances = [
            1 - F.cosine_similarity(t.float().flatten(1), s.float().flatten(1))
            for t, s in zip(teacher, student, strict=True)
        ]
    return torch.stack(distances).mean(dim=1).sum()


def cosine_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Σ_i upsample(1 - cos(F_i^t, F_i^s)), a cosine a position: (B, 1, H, W) in [0, 2·scales] at `size`."""
    distances = [upsample(cosine_distance(t, s), size) for t, s in zip(teacher, student, strict=True)]
    return torch.stack(distances).sum(dim=0)
