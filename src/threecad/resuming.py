"""What an interrupted fit goes on from: the saved state, and the log that is cut back to it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threecad.checkpoint import read_about, save_tensors, writing
from threecad.errors import RunError


@dataclass(frozen=True)
class SavedState:
    """Everything that a resumed fit needs beyond its settings: weights, optimisers, and where it was."""

    phase: int
    step: int
    log_bytes: int
    elapsed_s: float  # of all attempts so far
    model: Mapping[str, Tensor]
    optimizers: Sequence[Mapping[str, Tensor]]  # state tensors by "parameter/name"

    @classmethod
    def read(cls, file: Path) -> SavedState | None:
        if not file.exists():
            return None
        tensors, about = read_about(file)
        try:
            place = json.loads(about["place"])
            optimizers: list[dict[str, Tensor]] = [{} for _ in range(place["optimizers"])]
            model = {}
            for name, tensor in tensors.items():
                room, _, rest = name.partition("/")
                if room == "model":
                    model[rest] = tensor
                else:
                    optimizers[int(room)][rest] = tensor
            return cls(place["phase"], place["step"], place["log_bytes"], place["elapsed_s"], model, optimizers)
        except (KeyError, ValueError, IndexError) as error:
            raise RunError(f"{file} is no saved state of a fit ({error}); fit anew into another folder") from None

    def write(self, file: Path) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= {f"{number}/{name}": tensor for name, tensor in optimizer.items()}
        place = {
            "phase": self.phase,
            "step": self.step,
            "log_bytes": self.log_bytes,
            "elapsed_s": self.elapsed_s,
            "optimizers": len(self.optimizers),
        }
        save_tensors(file, tensors, {"place": json.dumps(place)})

    def restore(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Put the state tensors back; rates and other options come from the phase."""
        for optimizer, tensors in zip(optimizers, self.optimizers, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                parameter, _, key = name.partition("/")
                state.setdefault(int(parameter), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class MetricsLog:
    """`metrics.csv`: one row a step and loss term; a resumed run cuts back what it will write again."""

    def __init__(self, file: Path, keep_bytes: int, enabled: bool) -> None:
        self.file, self.keep_bytes, self.enabled = file, keep_bytes, enabled

    def __enter__(self) -> MetricsLog:
        if self.enabled:
            with writing(self.file):
                self.stream = self.file.open("a+", encoding="utf-8", newline="")
                self.stream.truncate(self.keep_bytes)
            self.rows = csv.writer(self.stream, lineterminator="\n")
            if not self.keep_bytes:
                self.rows.writerow(("phase", "step", "rate", "term", "value"))
        return self

    def write(self, phase: str, step: int, rate: float, values: Mapping[str, float]) -> None:
        """One row for each loss term."""
        if self.enabled:
            for term, value in values.items():
                self.rows.writerow((phase, step, f"{rate:.6g}", term, f"{value:.6g}"))

    def flush(self) -> int:
        """Bytes that are safely in the file."""
        if not self.enabled:
            return 0
        with writing(self.file):
            self.stream.flush()
            os.fsync(self.stream.fileno())
        return self.file.stat().st_size

    def __exit__(self, *exception: object) -> None:
        if self.enabled:
            with writing(self.file):
                self.stream.close()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state tensors of an optimiser by "parameter/name"."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{parameter}/{name}": value.detach().cpu().contiguous()
        for parameter, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
