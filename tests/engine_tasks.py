"""Functions that `test_engines.py` sends to other processes, which import them from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from threecad.errors import DataError

PLAN = """
data = "{data}"
methods = ["padim"]
seeds = [0, 1]
backbone = "resnet10t.c3_in1k"

[settings.method]
weights = "random"
image_size = 64
features = 12

[settings.training]
precision = "float32"
"""


def square(number: int) -> int:
    return number * number


def fail(how: str) -> str:
    if how == "data":
        raise DataError("expected this, found that")
    if how == "fault":
        raise KeyError(how)
    return how


def kill_oneself(really: bool) -> str:
    if really:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def kill_oneself_once(trace: Path) -> str:
    if not trace.exists():
        trace.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return trace.name


def leave(trace: Path) -> None:
    trace.touch()


def environment(number: int) -> dict[str, object]:
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {
        "threads": os.environ["OMP_NUM_THREADS"],
        "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
        "processors": processors,
    }
