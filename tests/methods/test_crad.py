"""CRAD: how grids are read, how a reconstruction is refined, what is scored."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from threecad.methods.crad import CRAD, CRADConfig, Memory, refine
from threecad.records import Batch
from threecad.synthesis.textures import ProceduralTextures


@pytest.fixture(scope="module")
def detector() -> CRAD:
    torch.manual_seed(0)
    return CRAD(CRADConfig.tiny()).eval()


@pytest.mark.parametrize(("expansion", "parameters"), [(4, 15_361_492), (1, 5_261_116)])
def test_the_model_has_as_many_parameters_as_the_official_one(expansion: int, parameters: int) -> None:
    with torch.device("meta"):
        detector = CRAD(CRADConfig(weights="random", expansion=expansion))
    assert detector.backbone.channels == [56, 160]
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    assert trained == parameters


def test_a_reconstruction_that_is_a_multiple_of_the_features_is_refined_to_the_features() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(refine(2.5 * features, features), features)
    torch.testing.assert_close(refine(0.01 * features, features), features)


def test_a_multiple_that_is_too_far_away_is_not() -> None:
    features = torch.ones(1, 8, 1, 1)
    refined = refine(5 * features, features)  # mean (r - f)² = 16 > 10, so s = 0.7
    torch.testing.assert_close(refined, torch.full_like(features, 0.7 * 1 + 0.3 * 5))


def test_refinement_equals_a_literal_retyping() -> None:
    torch.manual_seed(0)
    reconstructed, features = 3 * torch.randn(2, 1, 4, 2, 3)
    refined = refine(reconstructed, features)
    for row in range(2):
        for column in range(3):
            r, f = reconstructed[0, :, row, column].tolist(), features[0, :, row, column].tolist()
            dot = sum(a * b for a, b in zip(r, f, strict=True))
            cosine = dot / math.sqrt(sum(a * a for a in r)) / math.sqrt(sum(b * b for b in f))
            error = sum((a - b) ** 2 for a, b in zip(r, f, strict=True)) / 4
            near = 1 - round(min(max(0.05 * error, 0), 1))
            s = 0.3 * near + 0.7 * cosine
            expected = [s * b + (1 - s) * a for a, b in zip(r, f, strict=True)]
            assert refined[0, :, row, column].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_memories_are_read_like_a_grid_repeated_for_each_image_the_global_one_first() -> None:
    torch.manual_seed(0)
    memory = Memory((3, 5, 4), local=8, whole=4)
    local, whole = torch.rand(2, 2, 5, 4) * 2 - 1, torch.rand(2, 2, 1, 1) * 2 - 1
    read = memory(local, whole)
    assert read.shape == (2, 6, 5, 4)
    of_image = F.grid_sample(memory.whole.expand(2, -1, -1, -1), whole.permute(0, 2, 3, 1), align_corners=False)
    of_place = F.grid_sample(memory.local.expand(2, -1, -1, -1), local.permute(0, 2, 3, 1), align_corners=False)
    torch.testing.assert_close(read[:, :3], of_image.view(2, 3, 5, 4))
    torch.testing.assert_close(read[:, 3:], of_place)


def test_coordinates_are_jittered_in_half_of_the_steps_and_never_without_being_asked(detector: CRAD) -> None:
    features = detector._features(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        still = detector._reconstruct(features)
        moved = 0
        for seed in range(40):
            torch.manual_seed(seed)
            moved += not torch.equal(detector._reconstruct(features, jitter=0.05), still)
        assert torch.equal(detector._reconstruct(features), still)
    assert 10 <= moved <= 30


def test_the_loss_is_taken_on_the_refined_reconstruction(detector: CRAD) -> None:
    image = torch.rand(2, 3, 64, 64)
    features = detector._features(image)
    torch.manual_seed(3)
    expected = (refine(detector._reconstruct(features, jitter=0.05), features) - features).square().mean()
    torch.manual_seed(3)
    terms = detector.losses(Batch(image, image, torch.zeros(2, 1, 64, 64)))
    torch.testing.assert_close(terms["reconstruction"], expected)


def test_the_map_is_averaged_over_21_by_21_pixels_with_zeros_outside_and_the_score_over_32_by_32(
    detector: CRAD,
) -> None:
    torch.manual_seed(1)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        anomaly_map, score = detector(image)
        features = detector._features(image)
        distance = (refine(detector._reconstruct(features), features) - features).square().sum(dim=1).sqrt()
    fine = F.interpolate(distance[:, None], size=(64, 64), mode="bilinear", align_corners=True)
    assert anomaly_map[0, 0, 0, 0].item() == pytest.approx(fine[0, 0, :11, :11].sum().item() / 441, rel=1e-4)
    assert anomaly_map[1, 0, 30, 40].item() == pytest.approx(fine[1, 0, 20:41, 30:51].mean().item(), rel=1e-4)
    windows = anomaly_map.unfold(2, 32, 1).unfold(3, 32, 1).mean(dim=(-1, -2))
    torch.testing.assert_close(score, windows.amax(dim=(1, 2, 3)))


def test_grids_learn_a_hundred_times_faster_than_the_rest(detector: CRAD) -> None:
    (phase,) = detector.phases(ProceduralTextures())
    grids, others = phase.optimizers[0].param_groups
    assert {id(parameter) for parameter in grids["params"]} == {id(detector.memory.local), id(detector.memory.whole)}
    assert (grids["lr"], others["lr"]) == (0.1, 1e-3)
    assert grids["weight_decay"] == others["weight_decay"] == 0.01
    assert phase.clip_norm == 0.1
    assert [phase.schedule(epoch / 50) for epoch in (40, 41)] == pytest.approx([1, 0.1])
