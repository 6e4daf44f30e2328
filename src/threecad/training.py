"""The one training loop: runs the phases of any detector, resumes any of them exactly.

Order of things in a step: seed everything from (seed, phase, step, rank) · take the next full batch of the endless
shuffled stream · put synthetic anomalies in · loss terms, backwards · clip · rate from the schedule · optimise. No
state of a random generator has to be saved, and a run that was killed goes on with the same numbers.
"""

from __future__ import annotations

import hashlib
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from threecad.allocation import keep_freed_memory
from threecad.checkpoint import RunFolder, load_own, own_tensors
from threecad.data.loading import Rows
from threecad.detector import Detector, Epochs, GradientPhase, Phase, StatisticsPhase
from threecad.fit_plan import FitPlan
from threecad.records import Batch
from threecad.resuming import MetricsLog, SavedState, optimizer_tensors
from threecad.schedules import Schedule, one_cycle
from threecad.settings import TrainingSettings
from threecad.synthesis import TextureSource


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step, for progress bars and logs."""

    phase: str
    step: int  # of the phase, 1 after the first
    steps: int  # of the phase
    done: float  # share of the whole fit
    terms: Mapping[str, float]  # loss terms; empty in a statistics phase
    rate: float | None  # learning rate of the first optimiser
    detector: Detector  # as the step has left it, in training mode


Watch = Callable[[StepReport], None]


class Interrupted(KeyboardInterrupt):
    """The fit was asked to stop, and has saved its state."""


def train(
    detector: Detector,
    images: Rows,
    textures: TextureSource,
    settings: TrainingSettings,
    plan: FitPlan,
    run: RunFolder,
    fabric: Fabric,
    watch: Watch | None = None,
) -> float:
    """Seconds of training, over all attempts; fits `detector` in place, from the run's saved state if there is one.

    Args:
        images: good images, (N, H, W, 3) uint8.
        plan: what `plan_fit` says of the same detector, textures, settings and images.
        run: folder for `metrics.csv` and the state from which an interrupted fit resumes.
        fabric: launched; says on which device, in which precision, with how many processes.

    Raises:
        RunError: a saved state that does not fit, or a file that cannot be written.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    keep_freed_memory()
    loop = _Loop(detector, images, textures, settings, plan, run, fabric, watch)
    with _asked_to_stop() as asked:
        loop.run_phases(asked)
    return loop.elapsed_s()


class _Loop:
    def __init__(
        self,
        detector: Detector,
        images: Rows,
        textures: TextureSource,
        settings: TrainingSettings,
        plan: FitPlan,
        run: RunFolder,
        fabric: Fabric,
        watch: Watch | None,
    ) -> None:
        self.detector, self.images, self.textures = detector, images, textures
        self.settings, self.run, self.fabric, self.watch = settings, run, fabric, watch
        self.batch, self.steps = plan.batch, plan.steps
        self.started_at = self.saved_at = time.monotonic()
        self.before_s, self.save_cost_s = 0.0, 0.0

    def elapsed_s(self) -> float:
        """Seconds of training, with those of the attempts before this one."""
        return self.before_s + time.monotonic() - self.started_at

    def run_phases(self, asked: Callable[[], bool]) -> None:
        """Every phase in order; those before the saved one are replayed without running."""
        saved = SavedState.read(self.run.state_file)
        log = MetricsLog(self.run.metrics_file, saved.log_bytes if saved else 0, enabled=self.fabric.is_global_zero)
        if saved:
            load_own(self.detector, saved.model, self.run.state_file)
            self.before_s = saved.elapsed_s
        with log:
            for index, phase in enumerate(self.detector.phases(self.textures)):
                if saved and index < saved.phase:
                    continue
                resume = saved if saved and index == saved.phase else None
                if isinstance(phase, GradientPhase):
                    self._descend(index, phase, resume, log, asked)
                else:
                    self._observe(index, phase, log, asked)

    def _descend(
        self, index: int, phase: GradientPhase, resume: SavedState | None, log: MetricsLog, asked: Callable[[], bool]
    ) -> None:
        """A gradient phase: one optimiser step after another."""
        steps, schedule = self.steps[index], self._schedule(phase)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in phase.optimizers]
        if resume and resume.step:
            resume.restore(phase.optimizers)
        with _only_training(self.detector, phase.trains):
            losses, *optimizers = self.fabric.setup(_Losses(self.detector, phase), *phase.optimizers)
            for step in range(resume.step if resume else 0, steps):
                for optimizer, initial in zip(phase.optimizers, rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, initial, strict=True):
                        group["lr"] = rate * schedule(step / steps)
                terms: dict[str, Tensor] = {}
                for part in range(phase.accumulate):
                    batch = self._batch(index, phase, step * phase.accumulate + part)
                    waits = self.fabric.world_size > 1 and part < phase.accumulate - 1
                    with self.fabric.no_backward_sync(losses) if waits else nullcontext():
                        terms = losses(lambda batch=batch: batch)
                        self.fabric.backward(torch.stack(list(terms.values())).sum())
                for optimizer in optimizers:
                    if phase.clip_norm is not None:
                        self.fabric.clip_gradients(losses, optimizer, max_norm=phase.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                values = {name: float(term.detach()) for name, term in terms.items()}
                rate = phase.optimizers[0].param_groups[0]["lr"]
                log.write(phase.name, step + 1, rate, values)
                self._report(index, phase, step + 1, values, rate)
                self._maybe_save(index, step + 1, phase.optimizers, log, asked)
        self._agree_on_buffers()
        if index + 1 < len(self.steps):
            self._save(index + 1, 0, (), log)

    def _observe(self, index: int, phase: StatisticsPhase, log: MetricsLog, asked: Callable[[], bool]) -> None:
        """A statistics phase: additive sums over all images, joined over processes, then its closed form."""
        state = phase.state
        for name in state:
            state[name] = state[name].to(self.fabric.device)
        with _only_training(self.detector, ()), torch.no_grad():
            for step in range(self.steps[index]):
                if isinstance(phase.duration, Epochs):
                    batch = self._slice(index, phase, step, phase.duration.count)
                else:
                    batch = self._batch(index, phase, step)
                if batch is not None:
                    with self.fabric.autocast():
                        phase.observe(batch)
                self._report(index, phase, step + 1, {}, None)
                if self._all_stop(asked):
                    raise Interrupted
            for name, tensor in state.items():
                state[name].copy_(torch.as_tensor(self.fabric.all_reduce(tensor, reduce_op="sum")))
            phase.conclude()
        if index + 1 < len(self.steps):
            self._save(index + 1, 0, (), log)

    def _agree_on_buffers(self) -> None:
        """Every process takes over those of the first: each has kept running statistics of its own share of a batch."""
        if self.fabric.world_size > 1:
            for buffer in self.detector.buffers():
                shared = buffer.contiguous()
                torch.distributed.broadcast(shared, src=0)
                buffer.copy_(shared)

    def _batch(self, index: int, phase: Phase, position: int) -> Batch:
        """This process's share of the batch at `position` of the endless shuffled stream, always full."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        chosen = shuffled(len(self.images), position * self.batch, self.batch, (self.settings.seed, index))
        return self._synthesised(index, phase, position, chosen[rank::world])

    def _slice(self, index: int, phase: Phase, position: int, epochs: float) -> Batch | None:
        """This process's share of images `position`·batch …, in order, each once an epoch, without padding."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        end = min((position + 1) * self.batch, math.ceil(epochs * len(self.images)))
        chosen = np.arange(position * self.batch, end)[rank::world] % len(self.images)
        return self._synthesised(index, phase, position, chosen) if len(chosen) else None

    def _synthesised(self, index: int, phase: Phase, position: int, chosen: np.ndarray) -> Batch:
        generator = seed_everything((self.settings.seed, index, position, self.fabric.global_rank), self.fabric.device)
        image = to_tensor(self.images[np.sort(chosen)], self.fabric.device)
        if phase.synthesizer is None:
            return Batch(image, image, image.new_zeros(len(image), 1, *image.shape[-2:]))
        with torch.no_grad():
            return phase.synthesizer(image, generator)

    def _schedule(self, phase: GradientPhase) -> Schedule:
        return one_cycle() if self.settings.schedule == "one_cycle" else phase.schedule

    def _report(self, index: int, phase: Phase, step: int, terms: Mapping[str, float], rate: float | None) -> None:
        if self.watch:
            done = (sum(self.steps[:index]) + step) / sum(self.steps)
            self.watch(StepReport(phase.name, step, self.steps[index], done, terms, rate, self.detector))

    def _maybe_save(
        self,
        phase: int,
        step: int,
        optimizers: Sequence[torch.optim.Optimizer],
        log: MetricsLog,
        asked: Callable[[], bool],
    ) -> None:
        """Save every `checkpoint_s`, but never so often that saving costs more than a twentieth of the time."""
        stop = self._all_stop(asked)
        due = max(self.settings.checkpoint_s, 25 * self.save_cost_s)
        if stop or time.monotonic() - self.saved_at > due:
            self._save(phase, step, optimizers, log)
        if stop:
            raise Interrupted

    def _all_stop(self, asked: Callable[[], bool]) -> bool:
        """Whether any process was asked to stop; all of them then stop after the same step."""
        if self.fabric.world_size == 1:
            return asked()
        return bool(self.fabric.all_reduce(torch.tensor(float(asked())), reduce_op="sum"))

    def _save(self, phase: int, step: int, optimizers: Sequence[torch.optim.Optimizer], log: MetricsLog) -> None:
        start = time.monotonic()
        if self.fabric.is_global_zero:
            states = [optimizer_tensors(optimizer) for optimizer in optimizers]
            saved = SavedState(phase, step, log.flush(), self.elapsed_s(), own_tensors(self.detector), states)
            saved.write(self.run.state_file)
        self.saved_at = time.monotonic()
        self.save_cost_s = self.saved_at - start


class _Losses(nn.Module):
    """A phase's losses as a module: what Fabric wraps for mixed precision and for data-parallel reduction.

    The batch comes in a function: as it is, Fabric would cast it to bf16, which is off by up to half a grey level.
    """

    def __init__(self, detector: Detector, phase: GradientPhase) -> None:
        super().__init__()
        self.detector, self.phase = detector, phase

    def forward(self, take: Callable[[], Batch]) -> dict[str, Tensor]:
        return self.phase.losses(take())

    def train(self, mode: bool = True) -> _Losses:
        """Modes were set for the phase and stay."""
        return self


def shuffled(count: int, start: int, length: int, seed: Sequence[int]) -> np.ndarray:
    """Indices `start` … `start + length` of an endless stream of permutations of `count`, one an epoch."""
    positions = np.arange(start, start + length)
    epochs = positions // count
    orders = {e: np.random.default_rng([*seed, int(e)]).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][p % count] for e, p in zip(epochs, positions, strict=True)])


def seed_everything(key: Sequence[int], device: torch.device) -> torch.Generator:
    """Seed torch, NumPy and Python from a key of integers; a generator on `device` seeded likewise comes out."""
    digest = hashlib.sha256(repr(tuple(int(part) for part in key)).encode()).digest()
    seed = int.from_bytes(digest[:7], "big")
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    random.seed(seed)
    return torch.Generator(device).manual_seed(seed)


def to_tensor(pixels: np.ndarray, device: torch.device | str) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], channels last, from pixels (B, H, W, 3) uint8."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).to(torch.float32).div_(255)


@contextmanager
def _only_training(detector: Detector, trains: Sequence[nn.Module]) -> Iterator[None]:
    """Within, only `trains` are in training mode and get gradients; afterwards every flag is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in detector.parameters()]
    trained = {id(parameter) for part in trains for parameter in part.parameters()}
    detector.eval()
    for part in trains:
        part.train()
    for parameter, flag in flags:
        parameter.requires_grad_(flag and id(parameter) in trained)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        detector.eval()


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM waits for the end of the step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
