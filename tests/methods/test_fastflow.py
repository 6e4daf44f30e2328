"""FastFlow: its flow against autograd, its loss and maps against a literal retyping, the published counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from threecad.methods.fastflow import (
    FastFlow,
    FastFlowConfig,
    Flow,
    energy_map,
    likelihood_map,
    negative_log_likelihood,
)
from threecad.records import Batch


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("changes", "flow", "norm"),
    [
        ({}, 2_593_024, 917_504),
        ({"conv3x3_only": True}, 4_657_408, 917_504),
        ({"backbone": "wide_resnet50_2.tv_in1k"}, 41_337_856, 3_670_016),
    ],
)
def test_flows_have_the_published_number_of_parameters(changes: dict[str, object], flow: int, norm: int) -> None:
    with torch.device("meta"):
        detector = FastFlow(FastFlowConfig(weights="random", **changes))
    assert trainable(detector.flows) == flow
    assert trainable(detector.norms) == norm


def tiny_flow() -> Flow:
    """A flow of odd channels, whose parameters are not those of its start."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - FrEIA draws its permutations from NumPy's global generator
    flow = Flow((3, 2, 2), kernels=(3, 1), hidden_ratio=1.0).double()
    for parameter in flow.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


def test_the_log_determinant_is_that_of_autograds_jacobian() -> None:
    flow = tiny_flow()
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0].flatten(), features).reshape(12, 12)
    _, log_det = flow(features)
    assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-9)


def test_an_untrained_step_scales_each_channel_by_one() -> None:
    flow = Flow((4, 2, 2), kernels=(3,), hidden_ratio=1.0)
    (step,) = flow.steps
    scale = 0.1 * nn.functional.softplus(step.global_scale, beta=0.5)
    torch.testing.assert_close(scale, torch.ones_like(scale))
    assert step.global_offset.abs().max() == 0


def test_a_step_is_the_published_coupling() -> None:
    flow = tiny_flow()
    step = flow.steps[0]
    features = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    passive, active = features[:, :2], features[:, 2:]  # of three channels, the first two decide
    s, t = (0.1 * step.subnet(passive)).chunk(2, dim=1)
    log_scale = 2.0 * torch.tanh(s)
    joined = torch.cat([passive, active * torch.exp(log_scale) + t], dim=1)
    scale = 0.1 * nn.functional.softplus(step.global_scale, beta=0.5)
    order = step.w_perm[:, :, 0, 0].argmax(dim=1)
    z, log_det = step((features,))
    torch.testing.assert_close(z[0], (joined * scale + step.global_offset)[:, order])
    torch.testing.assert_close(log_det, log_scale.sum(dim=(1, 2, 3)) + 4 * scale.log().sum())


def test_steps_alternate_3x3_and_1x1_and_start_with_3x3() -> None:
    detector = FastFlow(FastFlowConfig.tiny())
    assert [step.subnet[0].kernel_size[0] for step in detector.flows[0].steps] == [3, 1]


def test_the_loss_is_half_the_squares_minus_the_log_determinant() -> None:
    z = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]])
    loss = negative_log_likelihood(z, torch.tensor([0.5, 1.5]))
    assert loss.item() == pytest.approx(((1 + 4) / 2 - 0.5 + (0 + 9) / 2 - 1.5) / 2)


def test_maps_average_the_scales_with_or_without_the_exponent() -> None:
    fine, coarse = torch.full((1, 2, 2, 2), 1.0), torch.full((1, 3, 1, 1), 2.0)
    fine[0, 1] = 3.0
    assert energy_map([fine, coarse], (4, 4))[0, 0, 1, 2].item() == pytest.approx((2.5 + 2.0) / 2)
    expected = -(math.exp(-2.5) + math.exp(-2.0)) / 2
    assert likelihood_map([fine, coarse], (4, 4))[0, 0, 1, 2].item() == pytest.approx(expected)


def test_strong_anomalies_tie_with_the_exponent_and_not_without_it() -> None:
    latents = [torch.tensor([20.0, 30.0]).view(1, 1, 1, 2)]
    with_exponent, without = (draw(latents, (1, 2)).flatten() for draw in (likelihood_map, energy_map))
    assert with_exponent[0] == with_exponent[1]
    assert without[0] < without[1]


@pytest.mark.parametrize("exponent", [True, False])
def test_the_score_is_the_maximum_of_the_map(exponent: bool) -> None:
    torch.manual_seed(0)
    config = FastFlowConfig.tiny().model_copy(update={"exponent": exponent})
    prediction = FastFlow(config).eval()(torch.rand(2, 3, 64, 64))
    assert torch.equal(prediction.score, prediction.anomaly_map.flatten(1).max(dim=1).values)
    assert (prediction.anomaly_map <= 0).all() == exponent


def test_the_flow_stays_float32_where_the_backbone_does_not() -> None:
    torch.manual_seed(0)
    detector, image = FastFlow(FastFlowConfig.tiny()).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = detector.pyramid(image)
        mixed = detector._transform(image)
    assert not torch.equal(features[0], detector.pyramid(image)[0])  # the backbone does take bf16
    with torch.no_grad():
        for flow, norm, scale, (z, log_det) in zip(detector.flows, detector.norms, features, mixed, strict=True):
            expected_z, expected_log_det = flow(norm(scale))
            assert torch.equal(z, expected_z)
            assert torch.equal(log_det, expected_log_det)


def test_the_permutations_take_no_part_in_the_optimiser() -> None:
    detector = FastFlow(FastFlowConfig.tiny())
    (phase,) = detector.phases(textures=None)
    (optimizer,) = phase.optimizers
    (group,) = optimizer.param_groups
    assert all(parameter.requires_grad for parameter in group["params"])
    assert (group["lr"], group["weight_decay"], phase.duration.count, FastFlow.batch) == (1e-3, 1e-5, 500, 32)


def test_a_few_steps_raise_the_likelihood_of_every_scale() -> None:
    torch.manual_seed(0)
    detector, image = FastFlow(FastFlowConfig.tiny()), torch.rand(4, 3, 64, 64)
    batch = Batch(image, image, torch.zeros(4, 1, 64, 64))
    (phase,) = detector.phases(textures=None)
    (optimizer,) = phase.optimizers
    before = phase.losses(batch)
    for _ in range(5):
        sum(phase.losses(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = phase.losses(batch)
    assert all(after[name] < before[name] for name in before)
