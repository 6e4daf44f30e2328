"""SimpleNet: the order of its pooling, its loss and scores against a literal retyping, the published counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threecad.methods.simplenet import MOST_VALUES, SimpleNet, SimpleNetConfig, discriminator, truncated_loss
from threecad.nets.patches import PatchFeatures, average
from threecad.nets.pyramid import Pyramid
from threecad.records import Batch


@pytest.fixture(scope="module")
def detector() -> SimpleNet:
    torch.manual_seed(0)
    return SimpleNet(SimpleNetConfig.tiny()).eval()


@pytest.fixture(scope="module")
def wide() -> PatchFeatures:
    with torch.device("meta"):
        return PatchFeatures(Pyramid("wide_resnet50_2.tv_in1k", "random", strides=(8, 16)), MOST_VALUES)


def published_vectors(features: list[Tensor], scale_values: list[int], values: int) -> Tensor:
    """The published order: unfold, bring every value's map to the finer grid, then pool each vector. (B, h, w, D)."""
    height, width = features[0].shape[-2:]
    pooled = []
    for scale in features:
        patches = F.unfold(scale, 3, padding=1).unflatten(2, scale.shape[-2:])
        patches = F.interpolate(patches, size=(height, width), mode="bilinear", align_corners=False)
        vectors = patches.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(1)
        pooled.append(F.adaptive_avg_pool1d(vectors, scale_values[len(pooled)]))
    return F.adaptive_avg_pool1d(torch.cat(pooled, dim=2), values).view(len(features[0]), height, width, values)


def test_adaptor_and_discriminator_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        detector = SimpleNet(SimpleNetConfig(weights="random"))
    assert sum(p.numel() for p in detector.adaptor.parameters()) == 2_360_832
    assert sum(p.numel() for p in discriminator(1536).parameters()) == 1_576_960


def test_pooling_before_upsampling_gives_the_vectors_of_the_published_order(wide: PatchFeatures) -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(1, 512, 4, 6, generator=generator), torch.rand(1, 1024, 2, 3, generator=generator)]
    expected = published_vectors(features, [1536, 1536], 1536)
    torch.testing.assert_close(wide.pool(features), expected, rtol=1e-5, atol=1e-6)


def test_the_first_half_of_a_vector_comes_from_the_finer_scale(wide: PatchFeatures) -> None:
    assert (wide.pool.scale_values, wide.values) == ([1536, 1536], 1536)
    vectors = wide.pool([torch.ones(1, 512, 8, 8), torch.zeros(1, 1024, 4, 4)])
    inner = vectors[0, 1:-1, 1:-1]
    assert (inner[..., :768] == 1).all()
    assert (vectors[..., 768:] == 0).all()


@pytest.mark.parametrize(
    ("backbone", "scale_values", "values"),
    [("tf_efficientnet_lite0.in1k", [360, 1008], 1368), ("resnet18.tv_in1k", [1152, 1536], 1536)],
)
def test_a_narrow_backbone_keeps_what_it_has(backbone: str, scale_values: list[int], values: int) -> None:
    patches = PatchFeatures(Pyramid(backbone, "random", strides=(8, 16)), MOST_VALUES)
    assert (patches.pool.scale_values, patches.values) == (scale_values, values)
    with torch.no_grad():
        features = patches.pyramid(torch.rand(1, 3, 64, 64))
        torch.testing.assert_close(
            patches.pool(features), published_vectors(features, scale_values, values), rtol=1e-4, atol=1e-4
        )


def test_average_is_adaptive_pooling_along_the_values() -> None:
    vectors = torch.rand(2, 12, 5)
    for values in (12, 4, 5):
        expected = F.adaptive_avg_pool1d(vectors.transpose(1, 2), values).transpose(1, 2)
        torch.testing.assert_close(average(vectors, values), expected)


def test_the_loss_is_zero_beyond_the_margins_and_linear_within() -> None:
    good, noisy = torch.tensor([[0.7], [0.1], [-1.0]]), torch.tensor([[-0.6], [0.2], [-0.5]])
    good_loss, noisy_loss = truncated_loss(good, noisy)
    assert good_loss.item() == pytest.approx((0 + 0.4 + 1.5) / 3)
    assert noisy_loss.item() == pytest.approx((0 + 0.7 + 0) / 3)


def test_scores_are_minus_the_discriminator_and_the_image_score_is_taken_before_smoothing(detector: SimpleNet) -> None:
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        prediction = detector(image)
        vectors = detector.patches(image)
        scores = torch.stack([-detector.discriminator(detector.adaptor(v.flatten(0, 1))).view(8, 8) for v in vectors])
        upsampled = F.interpolate(scores.unsqueeze(1), size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.score, scores.flatten(1).max(dim=1).values)
    torch.testing.assert_close(prediction.anomaly_map, detector.smooth(upsampled))
    assert (prediction.anomaly_map.flatten(1).max(dim=1).values < prediction.score).all()


def test_the_discriminator_sees_good_and_noisy_vectors_in_one_batch(detector: SimpleNet) -> None:
    image = torch.rand(2, 3, 64, 64)
    torch.manual_seed(5)
    with torch.no_grad():
        terms = detector.losses(Batch(image, image, image[:, :1]))
        torch.manual_seed(5)
        good = detector.adaptor(detector.patches(image).flatten(0, 2))
        noisy = good + 0.015 * torch.randn(good.shape)
        outputs = detector.discriminator(torch.cat([good, noisy]))
    torch.testing.assert_close(terms["good"], (0.5 - outputs[: len(good)]).clamp_min(0).mean())
    torch.testing.assert_close(terms["noisy"], (0.5 + outputs[len(good) :]).clamp_min(0).mean())


def test_adaptor_and_discriminator_have_the_published_optimisers() -> None:
    detector = SimpleNet(SimpleNetConfig.tiny())
    (phase,) = detector.phases(textures=None)
    adaptor, discriminator_ = phase.optimizers
    assert (type(adaptor), adaptor.defaults["lr"], adaptor.defaults["weight_decay"]) == (torch.optim.AdamW, 1e-4, 0.01)
    settings = (type(discriminator_), discriminator_.defaults["lr"], discriminator_.defaults["weight_decay"])
    assert settings == (torch.optim.Adam, 2e-4, 1e-5)
    assert (phase.duration.count, SimpleNet.batch, SimpleNetConfig().image_size) == (160, 8, (288, 288))
    assert isinstance(detector.discriminator[1], nn.BatchNorm1d)


def test_standardised_vectors_have_mean_0_and_spread_1_over_the_good_parts() -> None:
    torch.manual_seed(0)
    detector = SimpleNet(SimpleNetConfig.tiny().model_copy(update={"standardised": True})).eval()
    phase, _ = detector.phases(textures=None)
    images, sums = torch.rand(6, 3, 64, 64), phase.empty_sums()
    with torch.no_grad():
        variance = detector._describe(images).flatten(0, 2).var(dim=0)
        for image in images.split(2):
            phase.observe(sums, Batch(image, image, image[:, :1]))
        phase.conclude(sums)
        vectors = detector._describe(images).flatten(0, 2)
    assert vectors.mean(dim=0).abs().max() < 1e-3
    varying = variance > 0.02 * variance.mean()
    assert varying.float().mean() > 0.5
    torch.testing.assert_close(vectors.std(dim=0)[varying], torch.ones(int(varying.sum())), rtol=0.02, atol=0)
