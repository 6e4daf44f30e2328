"""UniAD: who may attend to whom, what is lost in training, what is scored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from threecad.errors import SettingsError
from threecad.methods.uniad import (
    Attention,
    UniAD,
    UniADConfig,
    jitter,
    neighbour_mask,
    reconstruction_loss,
)
from threecad.records import Batch
from threecad.settings import validate
from threecad.synthesis.textures import ProceduralTextures


@pytest.fixture(scope="module")
def detector() -> UniAD:
    torch.manual_seed(0)
    return UniAD(UniADConfig.tiny()).eval()


def test_the_transformer_has_as_many_parameters_as_the_official_one() -> None:
    with torch.device("meta"):
        detector = UniAD(UniADConfig(weights="random"))
    assert sum(parameter.numel() for parameter in detector.transformer.parameters()) == 7_717_392
    assert detector.backbone.channels == [24, 32, 56, 160]


def test_a_corner_token_is_kept_from_16_places_and_an_inner_one_from_49() -> None:
    blocked = neighbour_mask((14, 14), 7).isinf().sum(dim=1).view(14, 14)
    assert blocked[0, 0] == blocked[-1, -1] == 16
    assert (blocked[3:-3, 3:-3] == 49).all()
    assert blocked[0, 7] == 28


def test_the_mask_of_a_grid_that_is_not_square_follows_rows_and_columns() -> None:
    mask = neighbour_mask((2, 3), 3)
    middle_of_first_row, far = 0 * 3 + 0, 1 * 3 + 2
    assert mask[middle_of_first_row, far] == 0
    assert mask[middle_of_first_row, 1 * 3 + 1] == -math.inf


def test_attention_equals_that_of_torch_with_the_same_weights() -> None:
    torch.manual_seed(0)
    config = UniADConfig.tiny()
    ours = Attention(config).eval()
    theirs = nn.MultiheadAttention(config.width, config.heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project)
        theirs.in_proj_bias.copy_(ours.project_bias)
        theirs.out_proj.weight.copy_(ours.merge.weight)
        theirs.out_proj.bias.copy_(ours.merge.bias)
    residual, query, key, value = torch.randn(4, 2, 64, config.width)
    mask = neighbour_mask((8, 8), 7)
    expected = ours.norm(residual + theirs(query, key, value, attn_mask=mask)[0])
    torch.testing.assert_close(ours(residual, query, key, value, mask), expected)


def test_nothing_reaches_a_token_from_its_own_neighbourhood() -> None:
    torch.manual_seed(0)
    config = UniADConfig.tiny()
    attention, mask = Attention(config).eval(), neighbour_mask((8, 8), 7)
    tokens = torch.randn(1, 64, config.width)
    value = tokens.clone().requires_grad_()
    attention(tokens, tokens, tokens, value, mask)[0, 9].square().sum().backward()
    reached = value.grad.abs().sum(dim=2).view(8, 8) > 0
    assert not reached[:5, :5].any()  # token 9 stands at row 1, column 1
    assert reached[5:].all()
    assert reached[:, 5:].all()


def test_layers_start_with_equal_projections_and_queries_but_each_has_its_own(detector: UniAD) -> None:
    first, second = detector.transformer.decoder
    assert torch.equal(first.queries, second.queries)
    assert torch.equal(first.to_encoder.project, second.to_encoder.project)
    assert not torch.equal(first.to_encoder.merge.weight, second.to_encoder.merge.weight)
    assert first.queries is not second.queries
    assert isinstance(first.queries, nn.Parameter)


def test_jitter_is_as_strong_as_the_length_of_a_token_says() -> None:
    torch.manual_seed(0)
    features = torch.zeros(1, 8, 2, 1)
    features[0, :, 0] = 3.0  # a token of length 3·√8, beside one of length 0
    moved = torch.stack([jitter(features, strength=20) - features for _ in range(4000)])
    assert moved[:, 0, :, 0].std().item() == pytest.approx(20 * 3 * math.sqrt(8) / 8, rel=0.02)
    assert moved[:, 0, :, 1].abs().max() == 0


def test_the_loss_is_the_mean_square_of_the_difference() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 2, 3, 2, 2)
    expected = sum((a - b) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)) / 24
    assert reconstruction_loss(one, other).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_compares_with_features_that_were_not_jittered(detector: UniAD) -> None:
    image = torch.rand(2, 3, 128, 128)
    features = detector._features(image)
    torch.manual_seed(7)
    expected = reconstruction_loss(detector._reconstruct(jitter(features, 20.0)), features)
    torch.manual_seed(7)
    terms = detector.losses(Batch(image, image, torch.zeros(2, 1, 128, 128)))
    assert list(terms) == ["reconstruction"]
    torch.testing.assert_close(terms["reconstruction"], expected)


def test_the_map_is_the_length_of_the_difference_and_the_score_its_best_16_by_16_mean(detector: UniAD) -> None:
    torch.manual_seed(1)
    image = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        anomaly_map, score = detector(image)
        features = detector._features(image)
        difference = features - detector._reconstruct(features)
    for row, column in ((0, 0), (7, 7), (0, 7)):  # with aligned corners the grid's corners stay where they are
        length = math.sqrt(sum(value**2 for value in difference[1, :, row, column].tolist()))
        pixel = anomaly_map[1, 0, row * 127 // 7, column * 127 // 7].item()
        assert pixel == pytest.approx(length, rel=1e-5)
    windows = anomaly_map.unfold(2, 16, 1).unfold(3, 16, 1)
    torch.testing.assert_close(score, windows.mean(dim=(-1, -2)).amax(dim=(1, 2, 3)))


def test_the_rate_falls_to_a_tenth_after_801_of_1000_epochs_and_gradients_are_clipped(detector: UniAD) -> None:
    (phase,) = detector.phases(ProceduralTextures())
    assert [round(phase.schedule(progress), 6) for progress in (0.0, 0.8, 0.801, 0.99)] == [1, 1, 0.1, 0.1]
    assert phase.clip_norm == 0.1
    assert phase.optimizers[0].param_groups[0]["weight_decay"] == 1e-4


def test_an_image_that_the_window_covers_is_an_error_that_names_the_least_size() -> None:
    with pytest.raises(SettingsError, match=r"found 4×4; take an image_size of 128 px"):
        validate({"method": {"weights": "random", "image_size": 64}}, UniADConfig)


def test_standardised_features_have_mean_0_and_spread_1_over_the_good_parts() -> None:
    torch.manual_seed(0)
    detector = UniAD(UniADConfig.tiny().model_copy(update={"standardised": True})).eval()
    phase, _ = detector.phases(textures=ProceduralTextures())
    images, sums = torch.rand(6, 3, 128, 128), phase.empty_sums()
    with torch.no_grad():
        before = detector._features(images)
        for image in images.split(2):
            phase.observe(sums, Batch(image, image, image[:, :1]))
        phase.conclude(sums)
        features = detector._features(images)
    variance = before.var(dim=(0, 2, 3))
    varying = variance > 0.02 * variance.mean()
    assert (before.std(dim=(0, 2, 3)) - 1)[varying].abs().max() > 0.1
    torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(features.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(dim=(0, 2, 3))[varying], torch.ones(int(varying.sum())), rtol=0.02, atol=0)
