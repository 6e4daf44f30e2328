"""The one training loop: runs the phases of any detector, resumes any of them exactly.

Order of things in a step: seed everything from (seed, phase, step, rank) · take the next full batch of the endless
shuffled stream · put synthetic anomalies in · loss terms, backwards · clip · rate from the schedule · optimise. No
state of a random generator has to be saved, and a run that was killed goes on with the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from threecad.allocation import enough_memory
from threecad.checkpoint import load_own, own_tensors, refuse_unless_finite
from threecad.data.loading import Rows
from threecad.detector import Detector, Epochs, GradientPhase, Phase, StatisticsPhase
from threecad.devices import deterministic
from threecad.errors import RunError
from threecad.fit_plan import FitPlan
from threecad.records import Batch
from threecad.resuming import MetricsLog, Place, SavedState, optimizer_tensors
from threecad.runs import RunFolder
from threecad.schedules import Schedule, one_cycle
from threecad.settings import TrainingSettings
from threecad.stopping import Interrupted, stop_requests
from threecad.synthesis import TextureSource
from threecad.tensors import seed_everything, to_tensor


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


Callback = Callable[[StepReport], None]
"""Called after every step."""


def train(
    detector: Detector,
    images: Rows,
    textures: TextureSource,
    settings: TrainingSettings,
    plan: FitPlan,
    run: RunFolder,
    fabric: Fabric,
    callback: Callback | None = None,
) -> float:
    """Seconds of training, over all attempts; fits `detector` in place, from the run's saved state if there is one.

    Args:
        images: good images, (N, H, W, 3) uint8.
        plan: what `plan_fit` says of the same detector, textures, settings and images.
        run: folder for `metrics.csv` and the state from which an interrupted fit resumes.
        fabric: launched; says on which device, in which precision, with how many processes.

    Raises:
        RunError: a loss or a statistic that is not finite, or a saved state that does not fit.
        FileError: a file that cannot be written.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    with stop_requests() as stop_requested, deterministic(fabric.device), enough_memory():
        loop = _Loop(detector, images, textures, settings, plan, run, fabric, callback, stop_requested)
        loop.run_phases()
    return loop.elapsed_s()


@dataclass
class _Loop:
    detector: Detector
    images: Rows
    textures: TextureSource
    settings: TrainingSettings
    plan: FitPlan
    run: RunFolder
    fabric: Fabric
    callback: Callback | None
    stop_requested: Callable[[], bool]

    def __post_init__(self) -> None:
        self.batch, self.steps = self.plan.batch, self.plan.steps
        self.started_at = self.saved_at = time.monotonic()
        self.before_s, self.save_cost_s = 0.0, 0.0

    def elapsed_s(self) -> float:
        """Seconds of training, with those of the attempts before this one."""
        return self.before_s + time.monotonic() - self.started_at

    def run_phases(self) -> None:
        """Every phase in order; those before the saved one are replayed without running."""
        saved = SavedState.read(self.run.state_file)
        log = MetricsLog(
            self.run.metrics_file, saved.place.log_bytes if saved else 0, enabled=self.fabric.is_global_zero
        )
        if saved:
            load_own(self.detector, saved.model, self.run.state_file)
            self.before_s = saved.place.elapsed_s
        with log:
            for index, phase in enumerate(self.detector.phases(self.textures)):
                if saved and index < saved.place.phase:
                    continue
                resume = saved if saved and index == saved.place.phase else None
                if isinstance(phase, GradientPhase):
                    self._run_gradient_phase(index, phase, resume, log)
                else:
                    self._run_statistics_phase(index, phase, log)

    def _run_gradient_phase(
        self,
        index: int,
        phase: GradientPhase,
        resume: SavedState | None,
        log: MetricsLog,
    ) -> None:
        """A gradient phase: one optimiser step after another."""
        steps, schedule = self.steps[index], self._schedule(phase)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in phase.optimizers]
        if resume and resume.place.step:
            resume.restore(phase.optimizers)
        with _only_training(self.detector, phase.trains):
            losses, *optimizers = self.fabric.setup(_Losses(self.detector, phase), *phase.optimizers)
            for step in range(resume.place.step if resume else 0, steps):
                for optimizer, initial in zip(phase.optimizers, rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, initial, strict=True):
                        group["lr"] = rate * schedule(step / steps)
                values: dict[str, float] = {}
                for part in range(phase.accumulate):
                    batch = self._batch(index, phase, step * phase.accumulate + part)
                    waits = self.fabric.world_size > 1 and part < phase.accumulate - 1
                    with self.fabric.no_backward_sync(losses) if waits else nullcontext():
                        terms = losses(lambda batch=batch: batch)
                        self.fabric.backward(torch.stack(list(terms.values())).sum())
                    for name, term in terms.items():
                        values[name] = values.get(name, 0.0) + float(term.detach())
                rate = phase.optimizers[0].param_groups[0]["lr"]
                self._refuse_unless_finite(phase, step, values, rate)
                for optimizer in optimizers:
                    if phase.clip_norm is not None:
                        self.fabric.clip_gradients(
                            losses, optimizer, max_norm=phase.clip_norm, error_if_nonfinite=False
                        )
                    optimizer.step()
                    optimizer.zero_grad()
                log.write(phase.name, step + 1, rate, values)
                self._report(index, phase, step + 1, values, rate)
                self._maybe_save(index, step + 1, phase.optimizers, log)
        self._agree_on_buffers()
        if index + 1 < len(self.steps):
            self._save(index + 1, 0, (), log)

    def _run_statistics_phase(self, index: int, phase: StatisticsPhase, log: MetricsLog) -> None:
        """A statistics phase: additive sums over all images, joined over processes, then its closed form."""
        sums = {name: tensor.to(self.fabric.device) for name, tensor in phase.empty_sums().items()}
        with _only_training(self.detector, ()), torch.no_grad():
            for step in range(self.steps[index]):
                if isinstance(phase.duration, Epochs):
                    batch = self._slice(index, phase, step, phase.duration.count)
                else:
                    batch = self._batch(index, phase, step)
                if batch is not None:
                    with self.fabric.autocast():
                        phase.observe(sums, batch)
                self._report(index, phase, step + 1, {}, None)
                if self._all_stop():
                    raise Interrupted
            for tensor in sums.values():
                tensor.copy_(torch.as_tensor(self.fabric.all_reduce(tensor, reduce_op="sum")))
            refuse_unless_finite(sums, f"phase '{phase.name}' has gathered")
            phase.conclude(sums)
            refuse_unless_finite(own_tensors(self.detector), f"phase '{phase.name}' has concluded with")
        if index + 1 < len(self.steps):
            self._save(index + 1, 0, (), log)

    def _refuse_unless_finite(self, phase: Phase, step: int, values: Mapping[str, float], rate: float) -> None:
        """Nothing, where every loss term is a number; the state saved last is then the last good one.

        Raises:
            RunError: a term is not; names phase, step, term and rate.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    f"the fit has diverged: phase '{phase.name}', step {step + 1}, rate {rate:.3g}: "
                    f"expected a finite loss term '{name}', found {value};\ntry a smaller method.learning_rate"
                )

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
        count = len(self.images.of_place(phase.place))
        chosen = shuffled(count, position * self.batch, self.batch, (self.settings.seed, index))
        return self._synthesised(index, phase, position, chosen[rank::world])

    def _slice(self, index: int, phase: Phase, position: int, epochs: float) -> Batch | None:
        """This process's share of images `position`·batch …, in order, each once an epoch, without padding."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        count = len(self.images.of_place(phase.place))
        end = min((position + 1) * self.batch, math.ceil(epochs * count))
        chosen = np.arange(position * self.batch, end)[rank::world] % count
        return self._synthesised(index, phase, position, chosen) if len(chosen) else None

    def _synthesised(self, index: int, phase: Phase, position: int, chosen: np.ndarray) -> Batch:
        generator = seed_everything((self.settings.seed, index, position, self.fabric.global_rank), self.fabric.device)
        images, rows = self.images.of_place(phase.place), np.sort(chosen)
        image = to_tensor(images[rows], self.fabric.device)
        if phase.synthesizer is None:
            return Batch(image, image, image.new_zeros(len(image), 1, *image.shape[-2:]))
        with torch.no_grad():
            batch = phase.synthesizer(image, generator)
        inside = images.inside_of(rows)
        return batch if inside is None else batch.altered_within(torch.from_numpy(inside[:, None]).to(image.device))

    def _schedule(self, phase: GradientPhase) -> Schedule:
        return one_cycle() if self.settings.schedule == "one_cycle" else phase.schedule

    def _report(self, index: int, phase: Phase, step: int, terms: Mapping[str, float], rate: float | None) -> None:
        if self.callback:
            done = (sum(self.steps[:index]) + step) / sum(self.steps)
            self.callback(StepReport(phase.name, step, self.steps[index], done, terms, rate, self.detector))

    def _maybe_save(
        self,
        phase: int,
        step: int,
        optimizers: Sequence[torch.optim.Optimizer],
        log: MetricsLog,
    ) -> None:
        """Save every `checkpoint_s`, but never so often that saving costs more than a twentieth of the time."""
        stop = self._all_stop()
        due = max(self.settings.checkpoint_s, 25 * self.save_cost_s)
        if stop or time.monotonic() - self.saved_at > due:
            self._save(phase, step, optimizers, log)
        if stop:
            raise Interrupted

    def _all_stop(self) -> bool:
        """Whether any process was asked to stop; all of them then stop after the same step."""
        if self.fabric.world_size == 1:
            return self.stop_requested()
        return bool(self.fabric.all_reduce(torch.tensor(float(self.stop_requested())), reduce_op="sum"))

    def _save(self, phase: int, step: int, optimizers: Sequence[torch.optim.Optimizer], log: MetricsLog) -> None:
        start = time.monotonic()
        if self.fabric.is_global_zero:
            states = [optimizer_tensors(optimizer) for optimizer in optimizers]
            model = own_tensors(self.detector)
            refuse_unless_finite(model, f"step {step} has left")  # the state saved before stays
            place = Place(
                phase=phase,
                step=step,
                log_bytes=log.flush(),
                elapsed_s=self.elapsed_s(),
                optimizers=len(states),
            )
            SavedState(place, model, states).write(self.run.state_file)
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
        """Ignore train() and eval(): the phase has set the mode of every submodule."""
        return self


def shuffled(count: int, start: int, length: int, seed: Sequence[int]) -> np.ndarray:
    """Indices `start` … `start + length` of an endless stream of permutations of `count`, one an epoch."""
    positions = np.arange(start, start + length)
    epochs = positions // count
    orders = {e: np.random.default_rng([*seed, int(e)]).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][p % count] for e, p in zip(epochs, positions, strict=True)])


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
