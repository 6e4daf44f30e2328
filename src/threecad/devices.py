"""Where networks run on this machine, and in which precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from threecad.errors import SettingsError


def best_device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def choose_device(name: str | None) -> torch.device:
    """The device called `name` (`cpu`, `cuda`, `cuda:1`); without a name, the best one.

    Raises:
        SettingsError: this machine has no such device.
    """
    if name is None or name == "auto":
        return best_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"expected a device of this machine, such as cpu or cuda, found '{name}': {str(error).splitlines()[0]}"
        ) from None
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bf16`; `auto` takes bf16 where the device has it natively.

    Raises:
        SettingsError: another word, or bf16 was asked for and the device does not have it.
    """
    if precision not in ("auto", "float32", "bf16"):
        raise SettingsError(f"precision: expected auto, float32 or bf16, found '{precision}'")
    native = has_native_bf16(device)
    if precision == "bf16" and not native:
        raise SettingsError(f"precision: bf16 has no native support on this {device.type}; use float32")
    return "bf16" if native and precision != "float32" else "float32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are done by the hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        tests = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(test is not None and test() for test in tests)
    return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A region in which the networks run in `precision`."""
    if resolve_precision(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def hardware() -> str:
    """The accelerator's name, else the processor's, with its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that does not say
    return f"{name}, {os.cpu_count()} cores"


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within, a GPU takes kernels that give the same bits each time, and warns where it has none."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
