"""DRAEM: its losses against a literal retyping, its synthesis, its score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from threecad.methods.draem import DRAEM, DRAEMConfig, focal_loss, structural_similarity
from threecad.records import Batch
from threecad.synthesis.textures import ProceduralTextures


@pytest.fixture(scope="module")
def detector() -> DRAEM:
    torch.manual_seed(0)
    return DRAEM(DRAEMConfig.tiny()).eval()


def test_both_networks_have_as_many_parameters_as_the_official_ones() -> None:
    with torch.device("meta"):
        detector = DRAEM(DRAEMConfig())
    assert sum(parameter.numel() for parameter in detector.reconstruction.parameters()) == 69_048_579
    assert sum(parameter.numel() for parameter in detector.discriminator.parameters()) == 28_374_146


def similarity_of_a_pixel(x: Tensor, y: Tensor, row: int, column: int, scale: float) -> float:
    """SSIM at one pixel of two pictures (H, W), by loops over its 11×11 window, zeros outside."""
    weights = [math.exp(-((offset - 5) ** 2) / (2 * 1.5**2)) for offset in range(11)]
    weights = [weight / sum(weights) for weight in weights]
    sums = dict.fromkeys(("x", "y", "xx", "yy", "xy"), 0.0)
    for i in range(11):
        for j in range(11):
            at = (row + i - 5, column + j - 5)
            if not (0 <= at[0] < x.shape[0] and 0 <= at[1] < x.shape[1]):
                continue
            weight, a, b = weights[i] * weights[j], x[at].item(), y[at].item()
            for name, value in (("x", a), ("y", b), ("xx", a * a), ("yy", b * b), ("xy", a * b)):
                sums[name] += weight * value
    c1, c2 = (0.01 * scale) ** 2, (0.03 * scale) ** 2
    mean_x, mean_y = sums["x"], sums["y"]
    variance_x, variance_y = sums["xx"] - mean_x**2, sums["yy"] - mean_y**2
    covariance = sums["xy"] - mean_x * mean_y
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


@pytest.mark.parametrize(("least", "scale"), [(0.0, 1.0), (-0.6, 2.0)])
def test_structural_similarity_equals_a_loop_over_windows(least: float, scale: float) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 3, 12, 9)
    x[0, 1, 4, 4] = least
    similarity = structural_similarity(x, y)
    for channel, row, column in ((0, 0, 0), (1, 5, 4), (2, 11, 8), (1, 2, 7)):
        expected = similarity_of_a_pixel(x[0, channel], y[0, channel], row, column, scale)
        assert similarity[0, channel, row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_image_is_wholly_similar_to_itself() -> None:
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(structural_similarity(image, image), torch.ones_like(image))


def test_the_focal_loss_equals_a_literal_retyping() -> None:
    logits = torch.tensor([[[[0.2, -1.0]], [[1.5, 0.3]]]])  # (1, 2, 1, 2)
    mask = torch.tensor([[[[1.0, 0.0]]]])
    expected = 0.0
    for (normal, anomalous), target in (((0.2, 1.5), 1), ((-1.0, 0.3), 0)):
        total = math.exp(normal) + math.exp(anomalous)
        softmax = (math.exp(normal) / total, math.exp(anomalous) / total)
        one_hot = [1e-5, 1 - 1e-5] if target else [1 - 1e-5, 1e-5]
        p = sum(t * s for t, s in zip(one_hot, softmax, strict=True)) + 1e-5
        expected += -((1 - p) ** 2) * math.log(p) / 2
    assert focal_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_normal_pixels_teach_the_discriminator_too() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    focal_loss(logits, torch.zeros(1, 1, 4, 4)).backward()
    assert (logits.grad.abs() > 1e-3).all()


def test_the_three_losses_compare_the_reconstruction_of_the_altered_image_with_the_clean_one(detector: DRAEM) -> None:
    torch.manual_seed(1)
    image, augmented = torch.rand(2, 2, 3, 64, 64)
    mask = (torch.rand(2, 1, 64, 64) > 0.9).float()
    terms = detector.losses(Batch(image, augmented, mask))
    reconstructed = detector.reconstruction(augmented)
    logits = detector.discriminator(torch.cat([reconstructed, augmented], dim=1))
    torch.testing.assert_close(terms["l2"], (reconstructed - image).square().mean())
    torch.testing.assert_close(terms["ssim"], 1 - structural_similarity(reconstructed, image).mean())
    torch.testing.assert_close(terms["focal"], focal_loss(logits, mask))
    assert list(terms) == ["l2", "ssim", "focal"]


def test_the_score_is_the_largest_21_by_21_mean_with_zeros_outside(detector: DRAEM) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        anomaly_map, score = detector(torch.rand(2, 3, 64, 64))
    padded = torch.zeros(2, 84, 84)
    padded[:, 10:-10, 10:-10] = anomaly_map[:, 0]
    means = padded.unfold(1, 21, 1).unfold(2, 21, 1).mean(dim=(-1, -2))
    torch.testing.assert_close(score, means.amax(dim=(1, 2)))
    assert 0 <= anomaly_map.amin() <= anomaly_map.amax() <= 1


def test_half_of_the_images_are_altered_and_some_clean_ones_are_rotated(detector: DRAEM) -> None:
    (phase,) = detector.phases(ProceduralTextures())
    batch = phase.synthesizer(torch.full((60, 3, 64, 64), 0.5), torch.Generator().manual_seed(0))
    rotated = (batch.image == 0).flatten(1).any(dim=1)  # turning brings in black corners
    assert 8 <= rotated.sum() <= 28
    altered = batch.mask.flatten(1).any(dim=1)
    assert 15 <= altered.sum() <= 42
    assert torch.equal(batch.augmented[~altered], batch.image[~altered])
    assert (rotated & altered).any()


def test_rates_fall_to_a_fifth_at_560_and_630_of_700_epochs(detector: DRAEM) -> None:
    (phase,) = detector.phases(ProceduralTextures())
    assert phase.duration.count == 700
    assert [round(phase.schedule(epoch / 700), 6) for epoch in (0, 559, 560, 629, 630)] == [1, 1, 0.2, 0.2, 0.04]
