"""PaDiM: its Gaussians and its distance, against the batch formula and a literal retyping."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from threecad.errors import SettingsError
from threecad.methods.padim import PaDiM
from threecad.nets.gaussians import covariance, mahalanobis, whitening
from threecad.records import Batch


def fit(detector, batches):
    (phase,) = detector.phases(textures=None)
    sums = phase.empty_sums()
    with torch.no_grad():
        for image in batches:
            phase.observe(sums, Batch(image, image, torch.zeros_like(image[:, :1])))
        phase.conclude(sums)
    return sums


def embeddings(detector, image):
    """The paper's order: upsample everything, concatenate, then choose."""
    features = detector.pyramid(image)
    size = features[0].shape[-2:]
    everything = torch.cat([F.interpolate(scale, size=size, mode="nearest") for scale in features], dim=1)
    return everything[:, detector.channels].flatten(2)  # (B, D, P)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    detector = PaDiM(PaDiM.Config.tiny()).eval()
    images = 0.4 + 0.1 * torch.rand(44, 3, 64, 64)
    fit(detector, images.split([16, 16, 8, 4]))
    return detector, images


def test_vectors_chosen_before_upsampling_are_those_chosen_after_it(fitted):
    detector, images = fitted
    expected = embeddings(detector, images[:3]).permute(2, 0, 1)
    assert torch.equal(detector._describe(images[:3]), expected)


def test_streamed_sums_give_the_mean_and_covariance_of_the_batch_formula(fitted):
    detector, images = fitted
    vectors = embeddings(detector, images).double().numpy()
    for position in (0, 100, 255):
        at = vectors[:, :, position]
        np.testing.assert_allclose(detector.gaussians.mean[position], at.mean(axis=0), rtol=1e-5)
        sigma = np.cov(at, rowvar=False) + 0.01 * np.eye(12)
        precision, factor = np.linalg.inv(sigma), detector.gaussians.factor[position].double()
        np.testing.assert_allclose(factor @ factor.T, precision, atol=1e-5 * precision.max())


def test_sums_of_features_far_from_zero_keep_their_precision():
    generator = torch.Generator().manual_seed(1)
    vectors = 1000 + torch.randn(1, 50, 4, generator=generator).double()
    product, mean = vectors.transpose(1, 2) @ vectors, vectors.mean(dim=1)
    sigma = covariance(product, mean, torch.tensor(50.0).double(), 0.01)
    np.testing.assert_allclose(sigma[0], np.cov(vectors[0], rowvar=False) + 0.01 * np.eye(4), atol=1e-8)


def test_one_image_has_the_ridge_alone_for_a_covariance():
    vector = torch.tensor([[[3.0, -2.0]]], dtype=torch.float64)
    sigma = covariance(vector.transpose(1, 2) @ vector, vector[:, 0], torch.tensor(1.0).double(), 0.01)
    assert torch.allclose(sigma[0], 0.01 * torch.eye(2, dtype=torch.float64))


def test_the_distance_is_mahalanobis():
    generator = torch.Generator().manual_seed(2)
    half = torch.randn(3, 4, 4, generator=generator).double()
    sigma = half @ half.transpose(1, 2) + 0.1 * torch.eye(4)
    vectors, mean = torch.randn(3, 2, 4, generator=generator).double(), torch.randn(3, 4, generator=generator).double()
    distance = mahalanobis(vectors, mean, whitening(sigma))
    for position in range(3):
        for image in range(2):
            away = (vectors[position, image] - mean[position]).numpy()
            expected = math.sqrt(away @ np.linalg.inv(sigma[position].numpy()) @ away)
            assert distance[image, position] == pytest.approx(expected, rel=1e-9)


def test_the_map_is_the_upsampled_and_smoothed_distance_and_the_score_its_maximum(fitted):
    detector, images = fitted
    with torch.no_grad():
        prediction = detector(images[:2])
        away = embeddings(detector, images[:2]).permute(2, 0, 1) - detector.gaussians.mean.unsqueeze(1)
        precision = detector.gaussians.factor @ detector.gaussians.factor.transpose(1, 2)
        distance = torch.einsum("pbi,pij,pbj->bp", away, precision, away).sqrt().view(2, 1, 16, 16)
        smooth = detector.smooth(F.interpolate(distance, size=(64, 64), mode="bilinear", align_corners=False))
    torch.testing.assert_close(prediction.anomaly_map, smooth, rtol=1e-4, atol=1e-4)
    assert torch.equal(prediction.score, prediction.anomaly_map.flatten(1).amax(1))


def test_a_planted_defect_is_the_highest_place_of_the_map(fitted):
    detector, _ = fitted
    image = 0.4 + 0.1 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        good = detector(image)
        image[:, :, 32:48, 8:24] = 1.0
        bad = detector(image)
    assert bad.score > good.score
    row, column = divmod(int(bad.anomaly_map.flatten().argmax()), 64)
    assert 24 <= row < 56 and column < 32


def test_sums_of_two_halves_add_up_to_the_sums_of_the_whole():
    torch.manual_seed(0)
    detector, images = PaDiM(PaDiM.Config.tiny()).eval(), torch.rand(6, 3, 64, 64)
    whole, first, second = (fit(detector, part) for part in ([images], [images[:2]], [images[2:]]))
    for name, total in whole.items():
        torch.testing.assert_close(first[name] + second[name], total)


def test_the_choice_of_channels_follows_the_seed_and_travels_with_the_weights():
    def built(seed):
        torch.manual_seed(seed)
        return PaDiM(PaDiM.Config.tiny())

    first, again, other = built(0), built(0), built(1)
    assert torch.equal(first.channels, again.channels)
    assert not torch.equal(first.channels, other.channels)
    other.load_state_dict(first.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(other.eval()(image).anomaly_map, first.eval()(image).anomaly_map)


def test_more_features_than_channels_is_an_error_naming_both():
    with pytest.raises(SettingsError, match=r"at most 448.*found 1000"):
        PaDiM(PaDiM.Config(backbone="resnet10t.c3_in1k", weights="random", image_size=(64, 64), features=1000))


def test_the_exported_program_equals_the_detector(fitted):
    detector, images = fitted
    program = torch.export.export(detector, (images[:2],)).module()
    torch.testing.assert_close(program(images[:2]).anomaly_map, detector(images[:2]).anomaly_map)


def test_positions_share_their_covariance_where_it_is_asked_for():
    """For fewer images than features: the next one is then not far from all that was seen."""
    images = 0.4 + 0.1 * torch.rand(28, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    far, said = [], []
    for shared in (False, True):
        torch.manual_seed(0)
        detector = PaDiM(PaDiM.Config.tiny().model_copy(update={"shared": shared, "ridge": 1e-6})).eval()
        fit(detector, [images[:8]])
        far.append(float(detector(images[8:]).score.mean() / detector(images[:8]).score.mean()))
        said.append(detector.choices())
    assert far[0] > 5 > 2 > far[1] > 1
    assert said[0] == []
    assert "told by the 8 seen there" in said[1][0]
