"""PaDiM and FastFlow against anomalib's torch models with equal weights; anomalib is no dependency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from threecad.methods.fastflow import FastFlow
from threecad.methods.padim import PaDiM
from threecad.records import Batch

pytestmark = pytest.mark.oracle
padim = pytest.importorskip("anomalib.models.image.padim.torch_model", reason="anomalib is not installed")
fastflow = pytest.importorskip("anomalib.models.image.fastflow.torch_model", reason="anomalib is not installed")

LAYERS = ["layer1", "layer2", "layer3"]
SIZE = (128, 128)


def normalised(detector: PaDiM | FastFlow, image: Tensor) -> Tensor:
    """anomalib's models take normalised images; ours normalise inside."""
    return (image - detector.pyramid.mean) / detector.pyramid.std


def inner(maps: Tensor) -> Tensor:
    """Away from the border, where the two Gaussian filters mirror differently."""
    return maps[..., 16:-16, 16:-16]


def copy_backbone(ours: PaDiM | FastFlow, network: nn.Module) -> None:
    """Our random weights into anomalib's feature extractor."""
    network.load_state_dict(ours.pyramid.network.state_dict())


def test_padim_fits_the_same_gaussians_and_draws_the_same_map() -> None:
    torch.manual_seed(0)
    ours = PaDiM(PaDiM.Config(weights="random", image_size=SIZE, features=20, ridge=0.01 + 1e-5)).eval()
    theirs = padim.PadimModel(backbone="resnet18", layers=LAYERS, pre_trained=False, n_features=20)
    copy_backbone(ours, theirs.feature_extractor.feature_extractor)
    theirs.idx = ours.channels
    images, new = torch.rand(30, 3, *SIZE), torch.rand(3, 3, *SIZE)
    new[0, :, 50:80, 40:70] = 1.0

    (phase,) = ours.phases(textures=None)
    sums = phase.empty_sums()
    theirs.train().feature_extractor.eval()
    with torch.no_grad():
        for image in images.split(10):
            phase.observe(sums, Batch(image, image, image[:, :1]))
            theirs(normalised(ours, image))
        phase.conclude(sums)
        theirs.fit()
        found, expected = ours(new), theirs.eval()(normalised(ours, new))

    torch.testing.assert_close(ours.gaussians.mean, theirs.gaussian.mean.T, rtol=1e-4, atol=1e-5)
    precision = theirs.gaussian.inv_covariance
    close = 1e-3 * precision.abs().amax()  # theirs is summed and inverted in float32
    torch.testing.assert_close(
        ours.gaussians.factor @ ours.gaussians.factor.transpose(1, 2), precision, rtol=0, atol=close
    )
    torch.testing.assert_close(inner(found.anomaly_map), inner(expected.anomaly_map), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("conv3x3_only", [False, True])
def test_fastflow_has_the_same_loss_and_the_same_map(conv3x3_only: bool) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - both draw their permutations from NumPy's global generator
    ours = FastFlow(FastFlow.Config(weights="random", image_size=SIZE, conv3x3_only=conv3x3_only))
    theirs = fastflow.FastflowModel(
        input_size=SIZE, backbone="resnet18", pre_trained=False, flow_steps=8, conv3x3_only=conv3x3_only
    )
    copy_backbone(ours, theirs.feature_extractor)
    for parameter in [*ours.norms.parameters(), *ours.flows.parameters()]:
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    copy_flows(ours, theirs)
    image = torch.rand(2, 3, *SIZE)

    with torch.no_grad():
        terms = ours.losses(Batch(image, image, image[:, :1]))
        hidden, jacobians = theirs.train()(normalised(ours, image))
        found, expected = ours.eval()(image), theirs.eval()(normalised(ours, image))

    from anomalib.models.image.fastflow.loss import FastflowLoss

    torch.testing.assert_close(sum(terms.values()), FastflowLoss()(hidden, jacobians), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, expected.pred_score.flatten(), rtol=1e-4, atol=1e-5)


def copy_flows(ours: FastFlow, theirs: nn.Module) -> None:
    """LayerNorms and couplings, permutations included, in the order in which both declare them."""
    for norm, other in zip(ours.norms, theirs.norms, strict=True):
        other.load_state_dict(norm.state_dict())
    for flow, blocks in zip(ours.flows, theirs.fast_flow_blocks, strict=True):
        for step, block in zip(flow.steps, blocks.module_list, strict=True):
            mine, names = step.state_dict(), block.state_dict()
            block.load_state_dict(dict(zip(names, (mine[name] for name in mine), strict=True)))
