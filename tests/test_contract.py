"""What every method owes the house. Parametrised over the registry: a new method is held to it without a line here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from threecad.data.loading import Rows
from threecad.detector import Detector, GradientPhase, Phase, StatisticsPhase
from threecad.fit_plan import plan_fit
from threecad.methods import METHODS
from threecad.records import Batch, Prediction
from threecad.runs import RunFolder
from threecad.settings import TrainingSettings
from threecad.stopping import Interrupted
from threecad.synthesis.textures import ProceduralTextures
from threecad.tensors import seed_everything, to_tensor
from threecad.training import StepReport, train

CPU = torch.device("cpu")


def build(name: str, **changes: object) -> Detector:
    """The tiny detector of a method, the same one each time."""
    method = METHODS[name]
    seed_everything((0,), CPU)
    config = method.Config(**(method.Config.tiny().model_dump() | changes))
    return method(config).eval()


def parts(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Good parts (N, H, W, 3) uint8: brushed plates with a bright rim, no two alike."""
    height, width = size
    generator = np.random.default_rng(seed)
    shade = np.linspace(90, 140, width)[None, None, :, None] + generator.normal(0, 6, (count, height, 1, 1))
    shade = shade + generator.normal(0, 4, (count, height, width, 3))
    shade[:, :6] = shade[:, -6:] = 200
    return np.clip(shade, 0, 255).astype(np.uint8)


def rows(pixels: np.ndarray) -> Rows:
    return Rows(pixels, np.arange(len(pixels)))


def snapshot(detector: Detector) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.state_dict(keep_vars=True).items()}


@dataclass
class Fitted:
    """A detector after three optimiser steps or more of each of its phases, and what was seen on the way."""

    name: str
    detector: Detector
    settings: TrainingSettings
    flags_before: dict[str, bool]
    seen: list[tuple[Phase, dict[str, Tensor], dict[str, Tensor]]]  # phase, state before, state after
    run: RunFolder

    @property
    def images(self) -> Tensor:
        return to_tensor(parts(3, self.detector.config.image_size, seed=7), CPU)

    def predict(self, images: Tensor) -> Prediction:
        with torch.no_grad():
            return self.detector(images)


def settings_for(detector: Detector) -> TrainingSettings:
    """The fewest steps that give each gradient phase three."""
    own = plan_fit(detector, ProceduralTextures(), TrainingSettings(batch=2), images=4).steps
    phases = list(detector.phases(ProceduralTextures()))
    gradient = [steps for steps, phase in zip(own, phases, strict=True) if isinstance(phase, GradientPhase)]
    steps = max(3 * len(gradient), -(-3 * sum(gradient) // min(gradient))) if gradient else None
    return TrainingSettings(batch=2, steps=steps, seed=3)


def fit(detector: Detector, settings: TrainingSettings, folder: Path, callback=None, precision="32-true") -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    run, fabric = RunFolder(folder), Fabric(accelerator="cpu", devices=1, precision=precision)
    images = rows(parts(4, detector.config.image_size))
    textures = ProceduralTextures()
    train(detector, images, textures, settings, plan_fit(detector, textures, settings, 4), run, fabric, callback)
    return run


@pytest.fixture(scope="module", params=list(METHODS))
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    detector = build(request.param)
    own_phases = detector.phases
    flags = {name: parameter.requires_grad for name, parameter in detector.named_parameters()}
    seen: list[tuple[Phase, dict[str, Tensor], dict[str, Tensor]]] = []

    def phases(textures: object) -> Iterator[Phase]:
        seen.clear()
        for phase in own_phases(textures):
            before = snapshot(detector)
            yield phase
            seen.append((phase, before, snapshot(detector)))

    settings = settings_for(detector)
    detector.phases = phases
    run = fit(detector, settings, tmp_path_factory.mktemp(request.param))
    del detector.phases
    return Fitted(request.param, detector, settings, flags, seen, run)


def test_map_and_score_have_their_shapes_and_are_finite_and_float32(fitted: Fitted) -> None:
    height, width = fitted.detector.config.image_size
    anomaly_map, score = fitted.predict(fitted.images)
    assert anomaly_map.shape == (3, 1, height, width)
    assert score.shape == (3,)
    assert anomaly_map.dtype == score.dtype == torch.float32
    assert anomaly_map.isfinite().all() and score.isfinite().all()
    assert anomaly_map.std() > 0


@pytest.mark.parametrize("name", METHODS)
def test_images_need_not_be_square(name: str) -> None:
    grid = METHODS[name].Config.grid
    height = METHODS[name].Config.tiny().image_size[0]
    size = (height, height + max(grid, 32))
    with torch.no_grad():
        prediction = build(name, image_size=size)(to_tensor(parts(2, size), CPU))
    assert prediction.anomaly_map.shape == (2, 1, *size)
    assert prediction.anomaly_map.isfinite().all()


def test_an_image_is_judged_alike_in_any_company(fitted: Fitted) -> None:
    images = fitted.images
    together, alone = fitted.predict(images), fitted.predict(images[:1])
    others = fitted.predict(torch.cat([images[:1], 1 - images[1:]]))
    scale = together.anomaly_map.abs().max()
    torch.testing.assert_close(others.anomaly_map[:1], together.anomaly_map[:1], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(alone.anomaly_map, together.anomaly_map[:1], rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(alone.score, together.score[:1], rtol=1e-4, atol=1e-4 * scale)


def test_nothing_outside_trains_changes_and_everything_inside_moves(fitted: Fitted) -> None:
    names = {id(tensor): name for name, tensor in fitted.detector.state_dict(keep_vars=True).items()}
    assert fitted.seen
    for phase, before, after in fitted.seen:
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        if isinstance(phase, StatisticsPhase):
            assert changed and not changed & fitted.flags_before.keys(), f"{phase.name} concludes in buffers"
            continue
        inside = {names[id(t)] for part in phase.trains for t in part.state_dict(keep_vars=True).values()}
        must_move = {name for name in inside if fitted.flags_before.get(name)}
        assert changed - inside == set(), f"{phase.name} changed what it does not train"
        assert must_move - changed == set(), f"{phase.name} left parts of what it trains as they were"


def test_optimizers_hold_exactly_what_is_trained(fitted: Fitted) -> None:
    for phase in fitted.detector.phases(ProceduralTextures()):
        if isinstance(phase, GradientPhase):
            groups = [group for optimizer in phase.optimizers for group in optimizer.param_groups]
            held = [id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad]
            trained = {id(p) for part in phase.trains for p in part.parameters() if p.requires_grad}
            assert len(held) == len(set(held))
            assert set(held) == trained


def test_after_the_fit_modes_flags_and_gradients_are_as_before(fitted: Fitted) -> None:
    flags = {name: parameter.requires_grad for name, parameter in fitted.detector.named_parameters()}
    assert flags == fitted.flags_before
    assert not any(module.training for module in fitted.detector.modules())
    assert all(parameter.grad is None for parameter in fitted.detector.parameters())


def test_asking_for_the_phases_changes_nothing(fitted: Fitted) -> None:
    before = snapshot(fitted.detector)
    first, second = ([phase.name for phase in fitted.detector.phases(ProceduralTextures())] for _ in range(2))
    assert first == second and len(set(first)) == len(first)
    assert all(torch.equal(before[name], tensor) for name, tensor in fitted.detector.state_dict().items())


def test_what_a_state_dict_holds_is_the_whole_detector(fitted: Fitted) -> None:
    other = build(fitted.name)
    other.load_state_dict({name: tensor.clone() for name, tensor in fitted.detector.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(other(fitted.images).anomaly_map, fitted.predict(fitted.images).anomaly_map)


def test_statistics_are_float64_and_add_up(fitted: Fitted) -> None:
    """Sums over two halves are the sums over the whole: what lets processes share a statistics phase."""
    pixels = to_tensor(parts(4, fitted.detector.config.image_size), CPU)
    for phase in fitted.detector.phases(ProceduralTextures()):
        if isinstance(phase, StatisticsPhase):
            whole, first, second = (phase.empty_sums() for _ in range(3))
            for sums, images in ((whole, pixels), (first, pixels[:1]), (second, pixels[1:])):
                with torch.no_grad():
                    phase.observe(sums, Batch(images, images, torch.zeros_like(images[:, :1])))
            for name, total in whole.items():
                assert total.dtype == torch.float64, f"{phase.name}: {name}"
                scale = total.abs().max().item()
                torch.testing.assert_close(first[name] + second[name], total, rtol=1e-4, atol=1e-5 * scale)


def test_statistics_go_into_the_sums_that_are_handed_in(fitted: Fitted) -> None:
    """On a GPU those are copies: a phase that kept the tensors it had made would sum into nothing."""
    images = to_tensor(parts(4, fitted.detector.config.image_size, seed=7), CPU)
    mask = torch.zeros_like(images[:, :1])
    mask[..., : images.shape[-1] // 2] = 1
    batch = Batch(images, torch.where(mask > 0, 1 - images, images), mask)
    fit_state = snapshot(fitted.detector)
    try:
        for phase in fitted.detector.phases(ProceduralTextures()):
            if isinstance(phase, StatisticsPhase):
                own, before = phase.empty_sums(), snapshot(fitted.detector)
                copies = {name: tensor.clone() for name, tensor in own.items()}
                with torch.no_grad():
                    phase.observe(copies, batch)
                    phase.conclude(copies)
                assert not any(tensor.any() for tensor in own.values()), phase.name
                assert any(tensor.any() for tensor in copies.values()), phase.name
                after = snapshot(fitted.detector)
                assert any(not torch.equal(before[name], after[name]) for name in before), phase.name
    finally:  # the other tests of this method share the detector
        fitted.detector.load_state_dict(fit_state)


def test_in_bf16_losses_maps_and_scores_are_float32(fitted: Fitted) -> None:
    image = fitted.images[:2]
    with torch.autocast("cpu", torch.bfloat16):
        prediction = fitted.predict(image)
        assert prediction.anomaly_map.dtype == prediction.score.dtype == torch.float32
        generator = torch.Generator().manual_seed(0)
        for phase in fitted.detector.phases(ProceduralTextures()):
            if isinstance(phase, GradientPhase):
                batch = Batch(image, image, image.new_zeros(len(image), 1, *image.shape[-2:]))
                if phase.synthesizer:
                    with torch.autocast("cpu", enabled=False):  # as the training loop does
                        batch = phase.synthesizer(image, generator)
                terms = phase.losses(batch)
                assert terms
                assert {name: (t.dtype, t.ndim) for name, t in terms.items()} == dict.fromkeys(
                    terms, (torch.float32, 0)
                )
                assert all(term.isfinite() for term in terms.values())


@pytest.mark.slow
def test_interrupted_in_every_gradient_phase_and_resumed_it_ends_with_the_same_bits(
    fitted: Fitted, tmp_path: Path
) -> None:
    pending = [phase.name for phase, _, _ in fitted.seen if isinstance(phase, GradientPhase)]
    pending = pending or [phase.name for phase, _, _ in fitted.seen]

    def interrupt(report: StepReport) -> None:
        if pending and report.phase == pending[0] and report.step == min(2, report.steps):
            del pending[0]
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(len(pending)):
        with pytest.raises(Interrupted):
            fit(build(fitted.name), fitted.settings, tmp_path / "run", interrupt)
    detector = build(fitted.name)
    run = fit(detector, fitted.settings, tmp_path / "run", interrupt)
    assert not pending
    state, resumed = fitted.detector.state_dict(), detector.state_dict()
    assert [name for name in state if not torch.equal(state[name], resumed[name])] == []
    assert run.metrics_file.read_text() == fitted.run.metrics_file.read_text()


@pytest.mark.slow
def test_the_exported_program_equals_the_detector_and_survives_saving(fitted: Fitted, tmp_path: Path) -> None:
    images, file = fitted.images[:2], tmp_path / "detector.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fitted.detector, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    expected = fitted.predict(fitted.images)
    with torch.no_grad():
        found = loaded(fitted.images)
    scale = expected.anomaly_map.abs().max()
    torch.testing.assert_close(found[0], expected.anomaly_map, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(found[1], expected.score, rtol=1e-4, atol=1e-5 * scale)
