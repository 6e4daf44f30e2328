"""CFRG: every equation against a literal retyping, and what each ablation switch changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from timm.layers import DropPath
from torch import Tensor

from threecad.detector import GradientPhase, StatisticsPhase
from threecad.errors import SettingsError
from threecad.methods.cfrg import (
    CFRG,
    CFRGConfig,
    Segmenter,
    adapter,
    distillation_loss,
    recovery_loss,
    segmentation_loss,
)
from threecad.records import Batch
from threecad.settings_layers import validate
from threecad.synthesis.textures import ProceduralTextures

GRIDS = (4, 2, 1)
"""Sides of the three scales in the equations' tests."""


def build(**changes: object) -> CFRG:
    torch.manual_seed(0)
    settings = CFRGConfig.tiny().model_dump() | {"image_size": (64, 64)} | changes
    return CFRG(CFRGConfig(**settings)).eval()


def pyramid(seed: int, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3 + i, side, side, generator=generator) for i, side in enumerate(GRIDS)]


def batch(seed: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image, augmented = (torch.rand(2, 3, size, size, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, size, size)
    mask[0, :, 8:24, 16:40] = 1
    return Batch(image, torch.where(mask > 0, augmented, image), mask)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum()) / np.sqrt((b * b).sum()))


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Eq. 1, position by position: (B, C, H, W) twice -> (B, H, W)."""
    count, _, height, width = one.shape
    found = np.empty((count, height, width))
    for b, y, x in itertools.product(range(count), range(height), range(width)):
        found[b, y, x] = 1 - cosine(one[b, :, y, x], other[b, :, y, x])
    return found


def enlarged(grid: np.ndarray, height: int, width: int, align_corners: bool) -> np.ndarray:
    """Bilinear: (h, w) -> (height, width), corner pixels on corner pixels or corners of images on those of images."""
    found = np.empty((height, width))
    for y, x in itertools.product(range(height), range(width)):
        if align_corners:
            v, u = y * (grid.shape[0] - 1) / (height - 1), x * (grid.shape[1] - 1) / (width - 1)
        else:
            v, u = (y + 0.5) * grid.shape[0] / height - 0.5, (x + 0.5) * grid.shape[1] / width - 0.5
            v, u = np.clip(v, 0, grid.shape[0] - 1), np.clip(u, 0, grid.shape[1] - 1)
        top, left = int(v), int(u)
        bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
        above = grid[top, left] * (1 - (u - left)) + grid[top, right] * (u - left)
        below = grid[bottom, left] * (1 - (u - left)) + grid[bottom, right] * (u - left)
        found[y, x] = above * (1 - (v - top)) + below * (v - top)
    return found


def numpy(features: list[Tensor]) -> list[np.ndarray]:
    return [scale.detach().double().numpy() for scale in features]


@pytest.mark.parametrize("push", [True, False])
def test_equation_2_pulls_outside_the_mask_and_pushes_inside(push: bool) -> None:
    teacher, student = pyramid(0), pyramid(1)
    mask = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    expected = 0.0
    for t, s in zip(numpy(teacher), numpy(student), strict=True):
        of_scale = []
        for b, grid in enumerate(distances(t, s)):
            distance = enlarged(grid, 8, 8, align_corners=False)
            for y, x in itertools.product(range(8), range(8)):
                g = mask[b, 0, y, x].item()
                of_scale.append((1 - g) * distance[y, x] + (g * (1 - distance[y, x]) if push else 0))
        expected += float(np.mean(of_scale))
    assert distillation_loss(teacher, student, mask, push).item() == pytest.approx(expected, rel=1e-5)


def test_recovery_loss_takes_one_cosine_an_image_over_all_values_of_a_scale() -> None:
    normal, recovered = pyramid(0), pyramid(1)
    expected = 0.0
    for n, r in zip(numpy(normal), numpy(recovered), strict=True):
        expected += np.mean([1 - cosine(n[b].ravel(), r[b].ravel()) for b in range(2)])
    assert recovery_loss(normal, recovered).item() == pytest.approx(expected, rel=1e-5)


def test_recovery_loss_can_take_one_cosine_a_position() -> None:
    normal, recovered = pyramid(0), pyramid(1)
    expected = sum(distances(n, r).mean() for n, r in zip(numpy(normal), numpy(recovered), strict=True))
    assert recovery_loss(normal, recovered, flattened=False).item() == pytest.approx(expected, rel=1e-5)


def test_equation_4_is_binary_cross_entropy_averaged_over_pixels() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    expected = 0.0
    for logit, g in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-logit))
        expected -= (g * np.log(p) + (1 - g) * np.log(1 - p)) / logits.numel()
    assert segmentation_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_equation_5_is_the_sum_of_three_terms_over_the_altered_and_the_normal_image() -> None:
    detector, given = build(), batch()
    with torch.no_grad():
        terms = detector.losses(given)
        features = detector._features(given.augmented)
        logits = detector.segmenter(detector._weighted(features))
        normal = detector.teacher(given.image)
    assert list(terms) == ["distillation", "recovery", "segmentation"]
    assert terms["distillation"].item() == pytest.approx(
        distillation_loss(features.teacher, features.student, given.mask).item()
    )
    assert terms["recovery"].item() == pytest.approx(recovery_loss(normal, features.recovered).item())
    assert terms["segmentation"].item() == pytest.approx(segmentation_loss(logits, given.mask).item())


def seen_by_segmenter(detector: CFRG, image: Tensor) -> list[Tensor]:
    seen: list[list[Tensor]] = []
    hook = detector.segmenter.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        detector(image)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("changes", [{}, {"guidance": False}, {"recovery": False}])
def test_the_segmenter_sees_the_teachers_features_weighted_by_both_disagreements(changes: dict[str, bool]) -> None:
    """in_t = (1 - w_d) F^{t_a}; in_s = (1 - w_r) in_t; without guidance or recovery in_s = in_t."""
    detector, image = build(**changes), batch().augmented
    with torch.no_grad():
        features = detector._features(image)
    for scale, found in enumerate(seen_by_segmenter(detector, image)):
        t, s = numpy(features.teacher)[scale], numpy(features.student)[scale]
        expected = distances(t, s)[:, None] * t
        if not changes:
            expected = distances(t, numpy(features.recovered)[scale])[:, None] * expected
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


MAPS: list[tuple[dict[str, bool], tuple[str, ...]]] = [
    ({}, ("recovered", "logits")),
    ({"segmentation": False}, ("recovered",)),
    ({"recovery": False}, ("logits",)),
    ({"recovery": False, "distillation_map": True}, ("student", "logits")),
    ({"recovery": False, "segmentation": False, "distillation_map": True}, ("student",)),
]
"""Settings, and what their maps are summed from."""


@pytest.mark.parametrize(("changes", "summands"), MAPS)
def test_the_map_is_the_distance_plus_the_mask_smoothed_and_the_score_its_maximum(
    changes: dict[str, bool], summands: tuple[str, ...]
) -> None:
    """1 - cos(F^t, F^r) and the segmented mask; without a branch (WRC, WS) what is left, unless a setting says more."""
    detector, image = build(**changes), batch().augmented
    with torch.no_grad():
        features = detector._features(image)
        prediction = detector(image)
    expected = np.zeros((2, 64, 64))
    for branch in set(summands) - {"logits"}:
        for t, o in zip(numpy(features.teacher), numpy(getattr(features, branch)), strict=True):
            expected += [enlarged(grid, 64, 64, align_corners=True) for grid in distances(t, o)]
    if "logits" in summands:
        with torch.no_grad():
            logits = detector.segmenter(detector._weighted(features))
        expected += 1 / (1 + np.exp(-logits[:, 0].double().numpy()))
    smooth = np.stack([gaussian_filter(anomaly_map, 4) for anomaly_map in expected])
    np.testing.assert_allclose(prediction.anomaly_map[:, 0], smooth, atol=1e-4)
    np.testing.assert_allclose(prediction.score, smooth.max(axis=(1, 2)), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": False, "segmentation": False}, "nothing is left for the map"),
        ({"distillation_map": True}, "takes the place of the recovery branch"),
    ],
)
def test_branches_that_leave_no_map_or_two_are_refused(changes: dict[str, bool], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate({"method": changes}, CFRGConfig)


def test_the_clean_image_passes_the_teacher_in_the_precision_of_the_altered_one() -> None:
    detector, precisions = build(), []
    convolution = next(module for module in detector.teacher.modules() if isinstance(module, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: precisions.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        detector.losses(batch())
    assert precisions == [torch.bfloat16, torch.bfloat16]


def test_a_students_blocks_are_skipped_in_training_only_and_the_deeper_the_more_often() -> None:
    detector = build(student_drop_path=0.5)
    rates = [module.drop_prob for module in detector.student.modules() if isinstance(module, DropPath)]
    assert rates[0] == 0 and rates[-1] == 0.5 and rates == sorted(rates)
    image = batch().image
    with torch.no_grad():
        assert torch.equal(detector.student(image)[2], detector.student(image)[2])
        detector.student.train()
        passes = [detector.student(image)[2] for _ in range(8)]
    assert any(not torch.equal(passes[0], other) for other in passes[1:])


def test_wrc_drops_the_recovery_branch_and_its_loss() -> None:
    detector = build(recovery=False)
    assert detector.recovery is None
    assert list(detector.losses(batch())) == ["distillation", "segmentation"]


def test_ws_drops_the_segmenter_and_keeps_distillation_in_the_loss() -> None:
    detector = build(segmentation=False)
    assert detector.segmenter is None
    assert list(detector.losses(batch())) == ["distillation", "recovery"]


def test_wp_drops_the_push_from_the_distillation_loss_alone() -> None:
    with torch.no_grad():
        full, without = build().losses(batch()), build(push=False).losses(batch())
    assert without["distillation"] < full["distillation"]
    assert {name for name in full if not torch.equal(full[name], without[name])} == {"distillation"}


def test_wc_still_trains_the_recovery_branch_and_has_it_in_the_map() -> None:
    with torch.no_grad():
        full, without = build().losses(batch()), build(guidance=False).losses(batch())
    assert {name for name in full if not torch.equal(full[name], without[name])} == {"segmentation"}
    detector = build(guidance=False)
    detector.losses(batch())["segmentation"].backward()
    assert all(parameter.grad is None for parameter in detector.recovery.parameters())


def test_wh_takes_the_teachers_architecture_for_a_student_with_weights_of_its_own() -> None:
    detector = build(student="teacher")
    assert detector.student.pyramid.backbone == detector.teacher.backbone
    names = {name for name, _ in detector.teacher.network.named_parameters()}
    assert names == {name for name, _ in detector.student.pyramid.network.named_parameters()}
    image = batch().image
    assert not torch.equal(detector.student.pyramid(image)[0], detector.teacher(image)[0])
    assert build().student.pyramid.backbone == CFRGConfig.tiny().student


def test_guidance_lets_gradients_through_the_weights_into_student_and_recovery() -> None:
    detector = build()
    detector.losses(batch())["segmentation"].backward()
    for part in (detector.student, detector.recovery, detector.segmenter):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert all(parameter.grad is None for parameter in detector.teacher.parameters())


def test_the_authors_code_divides_the_distillation_loss_by_three() -> None:
    with torch.no_grad():
        total = build().losses(batch())["distillation"]
        mean = build(distillation_mean=True).losses(batch())["distillation"]
    assert mean.item() == pytest.approx(total.item() / 3, rel=1e-6)


def test_defaults_are_the_papers() -> None:
    config = CFRGConfig()
    assert (config.backbone, config.student, config.image_size) == (
        "wide_resnet50_2.tv_in1k",
        "efficientnet_b0",
        (256, 256),
    )
    assert (config.epochs, config.learning_rate, config.sigma_px) == (50, 5e-4, 4.0)
    assert not config.calibrated
    (phase,) = build().phases(ProceduralTextures())
    assert isinstance(phase, GradientPhase)
    (optimizer,) = phase.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert [phase.schedule(epoch / 50) for epoch in (39, 40, 44, 45)] == pytest.approx([1, 0.2, 0.2, 0.04])
    assert phase.synthesizer.opacity == (0.2, 1.0) and phase.synthesizer.share == 1 and not phase.synthesizer.augment


def test_the_authors_optimizer_is_adam_with_a_short_memory() -> None:
    (phase,) = build(optimizer="adam").phases(ProceduralTextures())
    (optimizer,) = phase.optimizers
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def test_the_papers_parts_have_their_sizes() -> None:
    with torch.device("meta"):
        detector = CFRG(CFRGConfig(weights="random"))
        segmenter = Segmenter((256, 512, 1024))
    count = sum(parameter.numel() for parameter in detector.recovery.bottleneck.parameters())
    assert count == 58_885_120
    assert sum(parameter.numel() for parameter in detector.recovery.decoder.parameters()) == 24_917_504
    assert detector.student.pyramid.channels == [24, 40, 112]
    assert [up.enlarge.out_channels for up in segmenter.up] == [512, 256, 128, 64]
    assert [up.refine[0].in_channels for up in segmenter.up] == [512 + 512, 256 + 256, 128, 64]


def test_adapters_end_without_a_relu_where_the_teachers_features_are_signed() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 4, 5, 5)
    assert (adapter(4, 6, signed=False)(features) >= 0).all()
    assert (adapter(4, 6, signed=True)(features) < 0).any()


def conclude(phase: StatisticsPhase, batch: Batch) -> None:
    """What the training loop does, with one batch."""
    sums = phase.empty_sums()
    phase.observe(sums, batch)
    phase.conclude(sums)


def test_a_calibration_from_a_single_part_is_finite_and_says_that_it_tells_nothing() -> None:
    detector = build(calibrated=True)
    phases = [phase for phase in detector.phases(ProceduralTextures()) if isinstance(phase, StatisticsPhase)]
    names = ["fine_distances", "coarse_distances", "parts", "memory", "left_out"]
    assert [phase.name for phase in phases] == names
    with torch.no_grad():
        one = Batch(batch().image[:1], batch().image[:1], batch().mask[:1])
        for phase in phases:
            conclude(phase, one)
        seen, other = detector(one.image), detector(1 - one.image)
    assert all(value.isfinite().all() for prediction in (seen, other) for value in prediction)
    assert other.score > seen.score
    assert detector.choices() == ["one good part alone tells nothing of how far the next may lie from it"]


def test_of_the_passes_of_a_calibration_only_the_last_waits_for_the_segmenter() -> None:
    detector, ran = build(calibrated=True), []
    detector.segmenter.register_forward_hook(lambda *_: ran.append(name))
    with torch.no_grad():
        for phase in detector.phases(ProceduralTextures()):
            if isinstance(phase, StatisticsPhase):
                name = phase.name
                conclude(phase, batch())
    assert ran == ["left_out"]


@pytest.mark.parametrize("switch", ["recovery", "segmentation"])
def test_a_calibrated_map_needs_neither_recovery_nor_segmentation(switch: str) -> None:
    detector = build(calibrated=True, **{switch: False})
    with torch.no_grad():
        for phase in detector.phases(ProceduralTextures()):
            if isinstance(phase, StatisticsPhase):
                conclude(phase, batch())
        prediction = detector(batch().image)
    assert prediction.anomaly_map.isfinite().all()
    assert prediction.anomaly_map.amax() > 0
