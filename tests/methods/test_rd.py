"""RD: its loss and map against a literal retyping, its networks against the published counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from threecad.methods.rd import RD
from threecad.nets.distillation import cosine_map, flattened_cosine_loss
from threecad.nets.recovery import Recovery
from threecad.records import Batch


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def two_pyramids() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 4), (2, 5, 2, 2)]
    first, second = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    return first, second


def test_bottleneck_and_decoder_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        recovery = Recovery([256, 512, 1024], signed=False)
    assert count(recovery.bottleneck) == 67_277_824 - 8_392_704  # without the convolution that the code never uses
    assert count(recovery.decoder) == 24_917_504


def test_the_loss_takes_one_cosine_an_image_over_all_values_of_a_scale() -> None:
    teacher, student = two_pyramids()
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        expected += sum(1 - cosine(t[b].flatten().tolist(), s[b].flatten().tolist()) for b in range(2)) / 2
    assert flattened_cosine_loss(teacher, student).item() == pytest.approx(expected, rel=1e-5)


def test_the_map_takes_one_cosine_a_position_and_sums_the_scales() -> None:
    teacher, student = two_pyramids()
    size = 7  # corners of the grids and of the map coincide: align_corners

    def at(scale: int, image: int, row: int, column: int) -> float:
        return 1 - cosine(*(maps[scale][image, :, row, column].tolist() for maps in (teacher, student)))

    drawn = cosine_map(teacher, student, (size, size))
    assert drawn.shape == (2, 1, 7, 7)
    for image in range(2):
        for row, column in ((0, 0), (0, 6), (6, 0), (6, 6)):
            expected = at(0, image, row // 2, column // 2) + at(1, image, row // 6, column // 6)
            assert drawn[image, 0, row, column].item() == pytest.approx(expected, abs=1e-5)
        # between corners of the coarse grid, on a position of the fine one
        expected = at(0, image, 1, 1) + sum(
            at(1, image, row, column) * abs(1 - row - 1 / 3) * abs(1 - column - 1 / 3)
            for row in (0, 1)
            for column in (0, 1)
        )
        assert drawn[image, 0, 2, 2].item() == pytest.approx(expected, abs=1e-5)


def test_equal_pyramids_have_no_loss_and_an_empty_map() -> None:
    teacher, _ = two_pyramids()
    assert flattened_cosine_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert cosine_map(teacher, teacher, (8, 8)).abs().max() < 1e-6


def test_the_score_is_the_maximum_of_the_smoothed_map() -> None:
    torch.manual_seed(0)
    detector, image = RD(RD.Config.tiny()).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        prediction, features = detector(image), detector.teacher(image)
        expected = detector.smooth(cosine_map(features, detector.recovery(features), (64, 64)))
    assert torch.equal(prediction.anomaly_map, expected)
    assert torch.equal(prediction.score, expected.flatten(1).max(dim=1).values)


def test_the_one_phase_trains_the_recovery_with_the_published_optimiser() -> None:
    detector = RD(RD.Config.tiny())
    (phase,) = detector.phases(textures=None)
    (optimizer,) = phase.optimizers
    group = optimizer.param_groups[0]
    assert (type(optimizer), group["lr"], group["betas"]) == (torch.optim.Adam, 5e-3, (0.5, 0.999))
    assert (phase.duration.count, RD.batch) == (200, 16)
    assert list(phase.trains) == [detector.recovery]


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    detector, image = RD(RD.Config.tiny()), torch.rand(4, 3, 64, 64)
    batch = Batch(image, image, torch.zeros(4, 1, 64, 64))
    (phase,) = detector.phases(textures=None)
    losses = []
    for _ in range(6):
        loss = sum(phase.losses(batch).values())
        loss.backward()
        for optimizer in phase.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
