"""RealNet: which features and residuals it selects, its losses, its score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from threecad.detector import Steps
from threecad.fit_plan import plan_fit
from threecad.methods.realnet import (
    Discriminator,
    RealNet,
    RealNetConfig,
    ResidualSelection,
    UNet,
    selection_error,
    smallest,
)
from threecad.records import Batch
from threecad.settings import TrainingSettings
from threecad.synthesis.textures import ProceduralTextures


@pytest.fixture(scope="module")
def detector() -> RealNet:
    torch.manual_seed(0)
    return RealNet(RealNetConfig.tiny()).eval()


def test_unets_and_discriminator_have_as_many_parameters_as_the_official_ones() -> None:
    with torch.device("meta"):
        detector = RealNet(RealNetConfig(weights="random"))
    unets = [sum(parameter.numel() for parameter in unet.parameters()) for unet in detector.unets]
    assert sum(unets) == 518_236_160
    assert unets[0] == unets[3] and unets[1] == unets[2]
    assert sum(parameter.numel() for parameter in detector.discriminator.parameters()) == 5_872_662
    assert [len(select.channels) for select in detector.selections] == [256, 512, 512, 256]
    assert detector.residual_selection.picked == 256


def test_the_selection_error_equals_a_literal_retyping() -> None:
    torch.manual_seed(0)
    normal, altered = torch.randn(2, 2, 3, 2, 2)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, :2, :2] = 1
    errors = selection_error(normal, altered, mask)
    assert errors.dtype == torch.float64
    for channel in range(3):
        difference = ((altered - normal)[:, channel] ** 2).flatten().tolist()
        low, high = min(difference), max(difference)
        target = mask[:, 0, ::2, ::2].flatten().tolist()  # the nearest pixel of each feature
        squares = [((d - low) / (high - low + 1e-4) - t) ** 2 for d, t in zip(difference, target, strict=True)]
        assert errors[channel].item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_the_channels_with_the_smallest_errors_are_kept_in_their_order_and_no_number_is_the_worst() -> None:
    errors = torch.tensor([0.3, float("nan"), 0.1, 0.2, 0.9], dtype=torch.float64)
    assert smallest(errors, 3).tolist() == [0, 2, 3]
    assert smallest(errors, 4).tolist() == [0, 2, 3, 4]


def test_the_selection_phase_sees_only_altered_images_and_keeps_what_its_sums_say() -> None:
    torch.manual_seed(0)
    detector = RealNet(RealNetConfig.tiny()).eval()
    phase = next(iter(detector.phases(ProceduralTextures())))
    assert phase.duration == Steps(2)
    assert phase.synthesizer.share == 1.0
    generator = torch.Generator().manual_seed(0)
    batches = [phase.synthesizer(torch.rand(4, 3, 128, 128, generator=generator), generator) for _ in range(2)]
    sums = phase.empty_sums()
    with torch.no_grad():
        for batch in batches:
            phase.observe(sums, batch)
        expected = [
            sum(
                selection_error(
                    detector.backbone(batch.image)[scale], detector.backbone(batch.augmented)[scale], batch.mask
                )
                for batch in batches
            )
            for scale in range(4)
        ]
        phase.conclude(sums)
    for select, errors in zip(detector.selections, expected, strict=True):
        kept = select.channels.tolist()
        worst_kept = errors[kept].max()
        others = [channel for channel in range(len(errors)) if channel not in kept]
        assert kept == sorted(kept)
        assert all(errors[channel] >= worst_kept for channel in others)
    assert [len(select.channels) for select in detector.selections] == [24, 32, 24, 8]


def test_residuals_are_ranked_normalised_and_gathered_as_they_are() -> None:
    torch.manual_seed(0)
    selection = ResidualSelection(channels=6, picked=2).eval()
    selection.normalise.running_mean.copy_(torch.rand(6))
    selection.normalise.running_var.copy_(torch.rand(6) + 0.1)
    residuals = torch.rand(2, 6, 3, 3)
    gathered = selection(residuals)
    assert gathered.shape == (2, 4, 3, 3)
    deviation = (selection.normalise.running_var + selection.normalise.eps).sqrt()
    for image in range(2):
        ranked = (residuals[image] - selection.normalise.running_mean[:, None, None]) / deviation[:, None, None]
        by_maximum = sorted(range(6), key=lambda channel: -ranked[channel].max().item())[:2]
        by_mean = sorted(range(6), key=lambda channel: -ranked[channel].mean().item())[:2]
        for place, channel in enumerate(by_maximum + by_mean):
            assert torch.equal(gathered[image, place], residuals[image, channel])


def test_unets_start_by_giving_zeros_at_every_place() -> None:
    torch.manual_seed(0)
    unet = UNet(channels=12, width=16)
    features = torch.randn(1, 12, 8, 12)
    assert torch.equal(unet(features), torch.zeros_like(features))


def test_the_losses_compare_with_the_features_of_the_normal_image(detector: RealNet) -> None:
    torch.manual_seed(1)
    image, augmented = torch.rand(2, 2, 3, 128, 128)
    mask = (torch.rand(2, 1, 128, 128) > 0.9).float()
    terms = detector.losses(Batch(image, augmented, mask))
    normal = detector._features(image)
    expected = sum(features.square().mean() for features in normal)  # untrained reconstructions are zero
    torch.testing.assert_close(terms["reconstruction"], expected)
    altered = detector._features(augmented)
    logits = detector._discriminate(altered, [torch.zeros_like(features) for features in altered], (128, 128))
    probability = logits.softmax(dim=1)
    right = torch.where(mask[:, 0] > 0, probability[:, 1], probability[:, 0])
    torch.testing.assert_close(terms["segmentation"], -right.log().mean())


def test_segmentation_teaches_the_unets_too(detector: RealNet) -> None:
    torch.manual_seed(1)
    image = torch.rand(2, 3, 128, 128)
    detector.zero_grad()
    detector.losses(Batch(image, image, torch.ones(2, 1, 128, 128)))["segmentation"].backward()
    assert any(
        unet.leave[-1].weight.grad.abs().sum() > 0 for unet in detector.unets
    )  # those whose residuals were picked
    detector.zero_grad()


def test_the_score_is_the_largest_16_by_16_mean(detector: RealNet) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        anomaly_map, score = detector(torch.rand(2, 3, 128, 128))
    assert anomaly_map.shape == (2, 1, 128, 128)
    means = anomaly_map.unfold(2, 16, 1).unfold(3, 16, 1).mean(dim=(-1, -2))
    torch.testing.assert_close(score, means.amax(dim=(1, 2, 3)))


def test_narrow_backbones_keep_the_published_shares_with_groups_and_heads_that_divide() -> None:
    with torch.device("meta"):
        detector = RealNet(RealNetConfig(backbone="tf_efficientnet_lite0.in1k", weights="random", width_ratio=0.7))
    assert detector.backbone.channels == [24, 40, 112, 320]
    assert [len(select.channels) for select in detector.selections] == [24, 40, 56, 40]
    assert detector.residual_selection.picked == 27


def test_generated_pictures_take_the_place_of_textures_with_their_own_opacity(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(tmp_path / "generated.png")
    detector = RealNet(RealNetConfig.tiny().model_copy(update={"sdas_dir": tmp_path}))
    selection, joint = detector.phases(ProceduralTextures())
    for phase in (selection, joint):
        assert phase.synthesizer.opacity == (0.5, 1.0)
        assert not phase.synthesizer.augment
        assert phase.synthesizer.textures.name.startswith(f"folder:{tmp_path.name}#")
    assert (selection.synthesizer.share, joint.synthesizer.share) == (1.0, 0.5)
    plan = plan_fit(detector, ProceduralTextures(), TrainingSettings(), images=16)
    assert plan.textures == selection.synthesizer.source  # what the run's record says
    batch = selection.synthesizer(torch.zeros(8, 3, 128, 128), torch.Generator().manual_seed(0))
    inside = batch.augmented[batch.mask.expand_as(batch.augmented) > 0] * 255
    assert inside.min() >= 99 and inside.max() <= 200.01
    assert F.mse_loss(inside, inside.round()).item() < 1e-3  # whole levels, as after a cast to uint8


def test_standardised_features_have_mean_0_and_spread_1_over_the_good_parts() -> None:
    torch.manual_seed(0)
    detector = RealNet(RealNetConfig.tiny().model_copy(update={"standardised": True})).eval()
    phase, *_ = detector.phases(ProceduralTextures())
    images, sums = torch.rand(6, 3, 128, 128), phase.empty_sums()
    with torch.no_grad():
        for image in images.split(2):
            phase.observe(sums, Batch(image, image, image[:, :1]))
        phase.conclude(sums)
        for features in detector._backbone(images):
            torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(features.shape[1]), rtol=0, atol=1e-4)
            assert features.std(dim=(0, 2, 3)).median() == pytest.approx(1, abs=0.02)


def test_a_discriminator_expects_few_anomalies_before_it_has_learnt_anything() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(12, prior=0.05)
    torch.testing.assert_close(discriminator.head.bias.softmax(dim=0), torch.tensor([0.95, 0.05]))
    residuals = torch.rand(2, 12, 8, 8)
    torch.testing.assert_close(discriminator(residuals).softmax(dim=1)[:, 1], torch.full((2, 16, 16), 0.05))
    few = torch.zeros(2, 16, 16, dtype=torch.long)
    few[:, :4, :4] = 1  # a sixteenth
    assert F.cross_entropy(discriminator(residuals), few) < 0.35  # 0.69 where both are expected alike
    assert RealNetConfig().prior is None


def test_the_quick_preset_starts_from_a_prior() -> None:
    assert RealNet.quick.method["prior"] == 0.05
