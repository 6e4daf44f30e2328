"""The one loop, on a detector small enough to follow by hand."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

import threecad
from threecad.data.loading import Rows
from threecad.detector import Detector, Epochs, GradientPhase, Phase, StatisticsPhase, Steps
from threecad.errors import RunError
from threecad.fit_plan import plan_fit
from threecad.methods import METHODS
from threecad.records import Batch, Paper, Prediction
from threecad.runs import RunFolder
from threecad.schedules import Schedule, constant, milestones, one_cycle
from threecad.settings import MethodConfig, TrainingSettings
from threecad.synthesis.textures import ProceduralTextures
from threecad.tensors import seed_everything, to_tensor
from threecad.training import StepReport, shuffled, train


class Shade(Detector):
    """Learns the mean colour by gradient, then the mean image by statistics."""

    paper = Paper("Shade", "None", "2025", "https://example.org", "E-b")
    Config = MethodConfig
    batch = 4

    def __init__(self, looks: Epochs = Epochs(1), **phase: object) -> None:
        super().__init__(MethodConfig(image_size=(32, 32), weights="random"))
        self.looks = looks
        self.phase = {"duration": Epochs(2), **phase}
        self.colour, self.bystander = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3, 32, 32))
        self.batches: list[Batch] = []
        self.observed: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, image: Tensor) -> Prediction:
        anomaly_map = (image - self.mean).square().sum(dim=1, keepdim=True)
        return Prediction(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.batches.append(batch)
        self.modes.append((self.colour.training, self.bystander.training))
        colour = batch.augmented.mean(dim=(2, 3))
        return {"colour": (self.colour(colour) - 1).square().mean(), "size": 0.1 * self.colour.weight.square().sum()}

    def phases(self, textures: object) -> Iterator[Phase]:
        optimizer = torch.optim.SGD(self.colour.parameters(), lr=0.1)
        yield GradientPhase("colour", self.losses, [self.colour], [optimizer], **self.phase)

        def empty_sums() -> dict[str, Tensor]:
            return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in (("n", ()), ("sum", (3, 32, 32)))}

        def observe(sums: Mapping[str, Tensor], batch: Batch) -> None:
            self.observed.append(batch.image)
            sums["n"].add_(len(batch.image))
            sums["sum"].add_(batch.image.double().sum(dim=0))

        def conclude(sums: Mapping[str, Tensor]) -> None:
            self.mean.copy_(sums["sum"] / sums["n"])

        yield StatisticsPhase("mean", empty_sums, observe, conclude, duration=self.looks)


def numbered(count: int) -> Rows:
    """Images (N, 32, 32, 3) that are all over as bright as their number."""
    pixels = np.zeros((count, 32, 32, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Rows(pixels, np.arange(count))


def numbers(batch: Batch) -> list[int]:
    return [round(value * 255) for value in batch.image[:, 0, 0, 0].tolist()]


def run(
    detector: Detector,
    folder: Path,
    images: int = 6,
    callback: Callable[[StepReport], None] | None = None,
    precision: str = "32-true",
    **settings: object,
) -> RunFolder:
    folder.mkdir(exist_ok=True)
    seed_everything((0,), torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    run_folder = RunFolder(folder)
    training, textures = TrainingSettings(**settings), ProceduralTextures()
    plan = plan_fit(detector, textures, training, images)
    train(detector, numbered(images), textures, training, plan, run_folder, fabric, callback)
    return run_folder


def test_batches_are_always_full_and_the_stream_runs_on_across_epochs(tmp_path: Path) -> None:
    detector = Shade(duration=Epochs(4))
    run(detector, tmp_path / "run", images=6)
    drawn = [numbers(batch) for batch in detector.batches]
    assert [len(batch) for batch in drawn] == [4] * 6
    assert sorted(number for batch in drawn for number in batch) == sorted(list(range(6)) * 4)


def test_the_stream_is_one_permutation_an_epoch_and_another_for_each_seed() -> None:
    whole = shuffled(5, 0, 15, (0, 0))
    assert [sorted(whole[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3
    assert np.array_equal(np.concatenate([shuffled(5, 0, 7, (0, 0)), shuffled(5, 7, 8, (0, 0))]), whole)
    assert not np.array_equal(whole[:5], whole[5:10])
    assert not np.array_equal(whole, shuffled(5, 0, 15, (1, 0)))


def test_fewer_images_than_a_batch_are_a_batch(tmp_path: Path) -> None:
    detector = Shade()
    run(detector, tmp_path / "run", images=3)
    assert {len(batch.image) for batch in detector.batches} == {3}


def test_statistics_see_each_image_once_in_order_and_without_padding(tmp_path: Path) -> None:
    detector = Shade()
    run(detector, tmp_path / "run", images=6)
    assert [len(image) for image in detector.observed] == [4, 2]
    seen = torch.cat(detector.observed)[:, 0, 0, 0] * 255
    assert seen.round().tolist() == list(range(6))
    torch.testing.assert_close(detector.mean, torch.full((3, 32, 32), 2.5 / 255))


def test_statistics_of_two_epochs_see_each_image_twice(tmp_path: Path) -> None:
    detector = Shade(looks=Epochs(2))
    run(detector, tmp_path / "run", images=6)
    assert [len(image) for image in detector.observed] == [4, 4, 4]
    seen = torch.cat(detector.observed)[:, 0, 0, 0] * 255
    assert sorted(seen.round().tolist()) == sorted([*range(6), *range(6)])
    torch.testing.assert_close(detector.mean, torch.full((3, 32, 32), 2.5 / 255))


def test_only_what_a_phase_trains_is_in_training_mode(tmp_path: Path) -> None:
    detector = Shade()
    run(detector, tmp_path / "run")
    assert set(detector.modes) == {(True, False)}
    assert not detector.colour.training


def test_a_frozen_parameter_inside_what_is_trained_stays_frozen(tmp_path: Path) -> None:
    detector = Shade()
    detector.colour.bias.requires_grad_(False)
    before = detector.colour.bias.clone()
    run(detector, tmp_path / "run")
    assert torch.equal(detector.colour.bias, before)
    assert not detector.colour.bias.requires_grad and detector.bystander.bias.requires_grad


def test_images_are_rgb_between_0_and_1_and_channels_last() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    tensor = to_tensor(pixels, "cpu")
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor[1, 2, 3, 4].item() == pytest.approx(pixels[1, 3, 4, 2] / 255)
    assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_without_a_synthesizer_nothing_is_altered(tmp_path: Path) -> None:
    detector = Shade()
    run(detector, tmp_path / "run")
    for batch in detector.batches:
        assert torch.equal(batch.augmented, batch.image)
        assert batch.mask.shape == (4, 1, 32, 32) and not batch.mask.any()


class Blot:
    """Paints a grey square whose shade comes from the generator."""

    source = "blots"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Batch:
        mask = torch.zeros(len(images), 1, *images.shape[-2:])
        mask[:, :, :8, :8] = 1
        shade = torch.rand(len(images), 1, 1, 1, generator=generator)
        return Batch(images, torch.where(mask > 0, shade, images), mask)


def test_anomalies_differ_from_step_to_step_and_are_the_same_with_the_same_seed(tmp_path: Path) -> None:
    shades = []
    for name in ("one", "again"):
        detector = Shade(synthesizer=Blot())
        run(detector, tmp_path / name)
        shades.append([batch.augmented[:, 0, 0, 0].tolist() for batch in detector.batches])
    assert shades[0] == shades[1]
    assert len({shade for batch in shades[0] for shade in batch}) == 3 * 4


def test_the_total_loss_is_the_sum_of_the_terms(tmp_path: Path) -> None:
    detector = Shade(duration=Steps(1))
    seed_everything((0,), torch.device("cpu"))
    weight = detector.colour.weight.detach().clone().requires_grad_()
    bias = detector.colour.bias.detach().clone()
    run(detector, tmp_path / "run")
    colour = detector.batches[0].image.mean(dim=(2, 3))
    loss = (colour @ weight.T + bias - 1).square().mean() + 0.1 * weight.square().sum()
    loss.backward()
    torch.testing.assert_close(detector.colour.weight, weight - 0.1 * weight.grad)


def test_accumulated_batches_are_summed_into_one_step(tmp_path: Path) -> None:
    detector = Shade(duration=Steps(1), accumulate=2)
    weight = detector.colour.weight.detach().clone().requires_grad_()
    bias = detector.colour.bias.detach().clone()
    run(detector, tmp_path / "run")
    assert len(detector.batches) == 2
    for batch in detector.batches:
        colour = batch.image.mean(dim=(2, 3))
        ((colour @ weight.T + bias - 1).square().mean() + 0.1 * weight.square().sum()).backward()
    torch.testing.assert_close(detector.colour.weight, weight - 0.1 * weight.grad)


def test_gradients_are_clipped_to_the_phases_norm(tmp_path: Path) -> None:
    detector = Shade(duration=Steps(1), clip_norm=1e-3)
    before = torch.cat([p.detach().flatten().clone() for p in detector.colour.parameters()])
    run(detector, tmp_path / "run")
    after = torch.cat([p.detach().flatten() for p in detector.colour.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize(("schedule", "named"), [("method", milestones((0.5,), 0.1)), ("one_cycle", one_cycle())])
def test_the_rate_follows_the_schedule_at_every_step(tmp_path: Path, schedule: str, named: Schedule) -> None:
    reports: list[StepReport] = []
    detector = Shade(schedule=milestones((0.5,), 0.1))
    run(detector, tmp_path / "run", steps=8, schedule=schedule, callback=reports.append)
    rates = [report.rate for report in reports if report.phase == "colour"]
    assert rates == pytest.approx([0.1 * named(step / 8) for step in range(8)])


def test_schedules_multiply_the_rate() -> None:
    steps = milestones((0.8, 0.9), 0.2)
    assert [steps(x) for x in (0, 0.79, 0.8, 0.9)] == pytest.approx([1, 1, 0.2, 0.04])
    assert constant(0.7) == 1
    curve = [one_cycle()(x / 100) for x in range(101)]
    assert max(curve) == curve[15] == pytest.approx(1)
    assert (curve[0], curve[-1]) == pytest.approx((0.04, 0.002))


def test_reports_and_metrics_csv_tell_every_step(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    folder = run(Shade(), tmp_path / "run", callback=reports.append)
    assert [(r.phase, r.step, r.steps) for r in reports] == [
        ("colour", 1, 3),
        ("colour", 2, 3),
        ("colour", 3, 3),
        ("mean", 1, 2),
        ("mean", 2, 2),
    ]
    assert [r.done for r in reports] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    with folder.metrics_file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["step"], line["term"]) for line in lines] == [(s, t) for s in "123" for t in ("colour", "size")]
    assert float(lines[0]["value"]) == pytest.approx(reports[0].terms["colour"], rel=1e-5)
    assert float(lines[0]["rate"]) == 0.1


def test_steps_of_the_settings_are_shared_by_the_gradient_phases() -> None:
    detector, textures = METHODS["destseg"](METHODS["destseg"].Config.tiny()), ProceduralTextures()
    own = plan_fit(detector, textures, TrainingSettings(), images=10).steps
    assert len(own) == 2
    scaled = plan_fit(detector, textures, TrainingSettings(steps=100), images=10).steps
    assert sum(scaled) == 100
    assert scaled[0] / 100 == pytest.approx(own[0] / sum(own), abs=0.01)


def test_epochs_are_counted_in_full_batches() -> None:
    def plan(images: int, **phase: object) -> list[int]:
        return list(plan_fit(Shade(**phase), ProceduralTextures(), TrainingSettings(), images).steps)

    assert plan(10, duration=Epochs(2)) == [5, 3]
    assert plan(10, duration=Epochs(2), accumulate=2) == [3, 3]
    assert plan(10, duration=Steps(7)) == [7, 3]
    assert plan(3, duration=Epochs(1)) == [1, 1]


def test_in_bf16_losses_and_parameters_are_float32(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    exact, rough = Shade(), Shade()
    rough.load_state_dict(exact.state_dict())
    run(exact, tmp_path / "exact")
    run(rough, tmp_path / "rough", precision="bf16-mixed", callback=reports.append)
    assert {tensor.dtype for tensor in rough.state_dict().values()} == {torch.float32}
    assert not torch.equal(exact.colour.weight, rough.colour.weight), "the network ran in float32"
    assert torch.equal(exact.batches[0].augmented, rough.batches[0].augmented), "images were rounded to bf16"
    torch.testing.assert_close(exact.colour.weight, rough.colour.weight, rtol=0.05, atol=0.02)


def test_seeds_reach_torch_numpy_python_and_the_generator() -> None:
    import random

    def draw(key: tuple[int, ...]) -> tuple[float, ...]:
        generator = seed_everything(key, torch.device("cpu"))
        legacy = float(np.random.rand())  # noqa: NPY002 - as a library would
        return torch.rand(()).item(), legacy, random.random(), torch.rand((), generator=generator).item()

    assert draw((0, 1, 2)) == draw((0, 1, 2))
    assert all(a != b for a, b in zip(draw((0, 1, 2)), draw((0, 2, 1)), strict=True))


def test_a_saved_state_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(RunError, match=r"state\.safetensors is not a readable safetensors file"):
        run(Shade(), folder)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what each of them has fitted."""
    out = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    result = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return out


def of_process(out: Path, name: str, rank: int) -> dict[str, Tensor]:
    return load_file(out / f"{name}.{rank}.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["shade", "normalised", *METHODS])
def test_two_processes_end_with_equal_weights_and_buffers(two_processes: Path, name: str) -> None:
    first, second = (of_process(two_processes, name, rank) for rank in (0, 1))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_joined_batch(two_processes: Path, tmp_path: Path) -> None:
    seed_everything((0,), torch.device("cpu"))
    alone = Shade()
    untrained = alone.colour.weight.detach().clone()
    run(alone, tmp_path / "run", images=6)
    assert not torch.allclose(alone.colour.weight, untrained)
    for key, tensor in of_process(two_processes, "shade", 0).items():
        torch.testing.assert_close(tensor, alone.state_dict()[key], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_run_of_two_processes_has_one_log_written_once(two_processes: Path) -> None:
    lines = (two_processes / "shade" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_devices_can_be_asked_for_on_the_command_line(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pairs = ["method.weights=random", "method.backbone=resnet10t.c3_in1k", "method.image_size=64", "training.steps=2"]
    pairs += ["training.devices=2", "training.batch=4", "training.precision=float32"]
    command = [sys.executable, "-m", "threecad", "fit", "rd", "--data", str(tree), "--out", str(out)]
    result = subprocess.run(
        command + [part for pair in pairs for part in ("--set", pair)], capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    record = RunFolder(out).read_record()
    assert (record.devices, record.steps, record.finished) == (2, 2, True)
    assert np.isfinite(threecad.load(out)(np.zeros((48, 64, 3), np.uint8)).score)
