"""What an interrupted fit goes on from: the saved state, and the log that is cut back to it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from threecad.errors import FileError, RunError
from threecad.files import read_tensors, write_tensors, writing
from threecad.runs import RunRecord
from threecad.settings import Settings


class Place(BaseModel):
    """Where in a fit a state was saved."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    phase: int = Field(ge=0)
    step: int = Field(ge=0)  # of the phase, finished
    log_bytes: int = Field(ge=0)  # of metrics.csv that belong to it
    elapsed_s: float = Field(ge=0)  # of all attempts so far
    optimizers: int = Field(ge=0)


@dataclass(frozen=True)
class SavedState:
    """Everything that a resumed fit needs beyond its settings: where it was, weights, and optimisers."""

    place: Place
    model: Mapping[str, Tensor]
    optimizers: Sequence[Mapping[str, Tensor]]  # state tensors by "parameter/name"

    @classmethod
    def read(cls, file: Path) -> SavedState | None:
        """The state in a file; None where there is none.

        Raises:
            RunError: the file is no saved state.
        """
        if not file.exists():
            return None
        try:
            tensors, about = read_tensors(file)
            place = Place.model_validate_json(about["place"])
            optimizers: list[dict[str, Tensor]] = [{} for _ in range(place.optimizers)]
            model = {}
            for name, tensor in tensors.items():
                room, _, rest = name.partition("/")
                if room == "model":
                    model[rest] = tensor
                else:
                    optimizers[int(room)][rest] = tensor
        except (FileError, KeyError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{file} is no saved state of a fit ({reason}); fit anew into another folder") from None
        return cls(place, model, optimizers)

    def write(self, file: Path) -> None:
        """Replace the file by this state."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= {f"{number}/{name}": tensor for name, tensor in optimizer.items()}
        write_tensors(file, tensors, {"place": self.place.model_dump_json()})

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


CONDITIONS = (
    *("categories", "precision", "threads", "devices", "hardware", "version", "libraries"),
    *("data_fingerprint", "texture_source", "weights_sha256"),
)
"""What has to be as it was for a resumed fit to give the same numbers."""


def refuse_other_settings(before: RunRecord, method: str, settings: Settings) -> None:
    """Nothing, where a run to be resumed is one of this method with these settings.

    Raises:
        RunError: it is not.
    """
    if before.method != method:
        raise RunError(f"the run is a fit of '{before.method}', requested was '{method}'; choose another --out")
    for table, values in settings.as_tables().items():
        for key in sorted(values.keys() | before.settings.get(table, {}).keys()):
            was, requested = before.settings.get(table, {}).get(key), values.get(key)
            if was != requested and (table, key) != ("training", "checkpoint_s"):
                raise RunError(
                    f"the run was started with {table}.{key} = {was!r}, requested is {requested!r}; "
                    "resume with the run's own settings (--config RUN/settings.toml), or choose another --out"
                )


def compare_conditions(before: RunRecord, now: RunRecord, inexact: bool, notify: Callable[[str], None]) -> None:
    """Nothing, where going on gives the same numbers as an uninterrupted fit; else `now` keeps what has changed.

    Raises:
        RunError: another machine, version or data, unless `inexact`.
    """
    now.resumed_inexactly = list(before.resumed_inexactly)
    differ = [name for name in CONDITIONS if getattr(before, name) != getattr(now, name)]
    if differ:
        what = "; ".join(f"{name} was {getattr(before, name)}, is {getattr(now, name)}" for name in differ)
        if not inexact:
            raise RunError(f"resuming would not give the same numbers: {what}\nAllow that with --inexact, or fit anew.")
        now.resumed_inexactly += [name for name in differ if name not in now.resumed_inexactly]
        notify(f"resuming inexactly: {what}")
