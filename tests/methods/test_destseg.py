"""DeSTSeg: its two phases, its losses against a literal retyping, its score."""

from __future__ import annotations

import math

import pytest
import torch

from threecad.detector import Steps
from threecad.methods.destseg import (
    DeSTSeg,
    DeSTSegConfig,
    Segmenter,
    Student,
    denoising_loss,
    focal_loss,
    similarity,
)
from threecad.nets.pyramid import Pyramid
from threecad.records import Batch
from threecad.synthesis.textures import ProceduralTextures


@pytest.fixture(scope="module")
def detector() -> DeSTSeg:
    torch.manual_seed(0)
    return DeSTSeg(DeSTSegConfig.tiny()).eval()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two vectors, in plain Python."""
    a, b = one.tolist(), other.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_student_and_segmenter_have_as_many_parameters_as_the_official_ones() -> None:
    with torch.device("meta"):
        detector = DeSTSeg(DeSTSegConfig(weights="random"))
    assert sum(parameter.numel() for parameter in detector.student.parameters()) == 24_665_024
    assert sum(parameter.numel() for parameter in detector.segmenter.parameters()) == 7_706_369
    assert sum(parameter.numel() for parameter in detector.segmenter.blocks.parameters()) == 2_918_912


def test_the_denoising_loss_equals_a_literal_retyping_and_doubles_with_the_batch() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    student = [torch.randn_like(features) for features in teacher]
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        for image in range(2):
            side = t.shape[-1]
            for row in range(side):
                for column in range(side):
                    expected += (1 - cosine(t[image, :, row, column], s[image, :, row, column])) / side**2
    loss = denoising_loss(teacher, student)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    twice = denoising_loss([torch.cat([t, t]) for t in teacher], [torch.cat([s, s]) for s in student])
    torch.testing.assert_close(twice, 2 * loss)


def test_similarity_is_minus_the_product_of_unit_vectors_so_that_channels_add_up_to_minus_their_cosine() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2)]
    student = [torch.randn_like(features) for features in teacher]
    similarities = similarity(teacher, student)
    assert similarities.shape == (1, 8, 4, 4)
    fine = cosine(teacher[0][0, :, 1, 2], student[0][0, :, 1, 2])
    assert similarities[0, :3, 1, 2].sum().item() == pytest.approx(-fine, rel=1e-5)
    coarse = cosine(teacher[1][0, :, 0, 1], student[1][0, :, 0, 1])
    assert similarities[0, 3:, 0, 3].sum().item() == pytest.approx(-coarse, rel=1e-5)


def test_the_focal_loss_equals_a_literal_retyping() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    expected = 0.0
    for logit, target in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        p = probability if target else 1 - probability
        expected += -((1 - p) ** 4) * math.log(p) / 4
    assert focal_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_the_student_learns_from_the_altered_image_what_the_teacher_sees_in_the_normal_one(detector: DeSTSeg) -> None:
    torch.manual_seed(1)
    image, augmented = torch.rand(2, 2, 3, 64, 64)
    terms = detector.student_losses(Batch(image, augmented, torch.zeros(2, 1, 64, 64)))
    torch.testing.assert_close(terms["denoising"], denoising_loss(detector.teacher(image), detector.student(augmented)))


def test_the_mask_is_brought_to_the_segmenters_grid_and_cut_at_one_half(detector: DeSTSeg) -> None:
    image, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    mask[:, :, 10:31, 20:50] = 1
    terms = detector.segmentation_losses(Batch(image, image, mask))
    coarse = torch.zeros(2, 1, 16, 16)
    for row in range(16):
        for column in range(16):  # a cell's value comes from the four pixels at its middle
            middle = mask[:, :, 4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3]
            coarse[:, :, row, column] = (middle.mean(dim=(2, 3)) >= 0.5).float()
    logits = detector._segment(image)
    torch.testing.assert_close(terms["l1"], (logits.sigmoid() - coarse).abs().mean())
    torch.testing.assert_close(terms["focal"], focal_loss(logits, coarse))


def test_the_score_is_the_mean_of_the_hundred_largest_pixels(detector: DeSTSeg) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        anomaly_map, score = detector(torch.rand(2, 3, 64, 64))
    largest = sorted(anomaly_map[1].flatten().tolist(), reverse=True)[:100]
    assert score[1].item() == pytest.approx(sum(largest) / 100, rel=1e-5)


def test_two_phases_are_counted_in_steps_and_the_second_leaves_the_student_alone(detector: DeSTSeg) -> None:
    student, segmenter = detector.phases(ProceduralTextures())
    assert (student.duration, segmenter.duration) == (Steps(1000), Steps(4000))
    assert student.trains == [detector.student]
    assert segmenter.trains == [detector.segmenter]
    assert [group["lr"] for group in student.optimizers[0].param_groups] == [0.4]
    assert [group["lr"] for group in segmenter.optimizers[0].param_groups] == [0.1, 0.01]
    assert all(group["momentum"] == 0.9 for group in segmenter.optimizers[0].param_groups)


def test_every_image_is_altered_by_textures_as_they_are(detector: DeSTSeg) -> None:
    synthesizer = next(iter(detector.phases(ProceduralTextures()))).synthesizer
    assert (synthesizer.share, synthesizer.augment, synthesizer.opacity) == (1.0, False, (0.2, 1.0))


def test_a_student_meets_a_narrow_signed_teacher_through_heads() -> None:
    teacher = Pyramid("tf_efficientnet_lite0.in1k", "random")
    student = Student("test_efficientnet.r160_in1k", teacher).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        shapes = [features.shape for features in student(image)]
    assert shapes == [features.shape for features in teacher(image)]
    assert all(isinstance(head, torch.nn.Conv2d) for head in student.heads)


def test_the_pooled_branch_reaches_every_place() -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(in_channels=4, width=8, dilations=(6, 12, 18)).eval()
    similarities = torch.randn(1, 4, 64, 64, requires_grad=True)
    segmenter(similarities)[0, 0, 0, 0].backward()
    assert (similarities.grad.abs().sum(dim=1) > 0).all()
