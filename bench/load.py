"""Times a fit and a bundle's network while other programs keep processors busy: with and without giving way to them.

    python bench/load.py [--steps 10] [--batch 8] [--rounds 3] [--busy 0 1 3]
                          [--model BUNDLE/detector.onnx | BUNDLE/detector.xml] [--looks 20]

A fit is training steps of CFRG's quick preset. Each way of computing is a process of its own, which works when it is
asked to; rounds go through all loads and ways in turn. A figure is the fastest round; in brackets, how many times as
long it took as the first way with nothing else busy. What `free_processors` saw of each load is printed below.
What disturbs one row more than another spoils the ratios: run it on a machine with little else to do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from threecad.runtime.networks import SETTINGS, import_openvino
from threecad.threads import free_processors

FITS: dict[str, dict[str, str]] = {
    "all threads, as torch comes": {},
    "all threads, pinned": {"OMP_PROC_BIND": "true"},
    "all threads, without spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread less, without spinning": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "-1"},
}
"""What the environment of a fit says; -1 is one thread less than there are processors."""

SPINNING = "session.intra_op.allow_spinning"
SESSIONS: dict[str, dict[str, dict[str, str]]] = {
    ".onnx": {
        "all threads, as ONNX Runtime comes": {},
        "all threads, without spinning": {SPINNING: "0"},
        "the same in small blocks": {SPINNING: "0", "session.dynamic_block_base": "4"},
        "one thread less, without spinning": {SPINNING: "0", "threads": "-1"},
    },
    ".xml": {
        "all threads, as OpenVINO comes": {},
        "all threads, not pinned": {"ENABLE_CPU_PINNING": "NO"},
        "one thread less": {"threads": "-1"},
    },
}
"""What the libraries are told, by the kind of file that they open."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="0: no fit")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3], help="threads of other programs")
    parser.add_argument("--model", type=Path, help="an exported network to time as well")
    parser.add_argument("--looks", type=int, default=20, help="pictures that it looks at in a round")
    options = parser.parse_args()
    if "BENCH_WAY" in os.environ:
        return work(options)
    if options.steps:
        fits = [spawn(environment, "fit") for environment in FITS.values()]
        table(f"{options.steps} steps of CFRG quick, batch {options.batch}, s", list(FITS), fits, options)
    if options.model is not None:
        ways = SESSIONS[options.model.suffix]
        sessions = [spawn({}, name) for name in ways]
        table(f"slowest of {options.looks} looks of {options.model.name}, ms", list(ways), sessions, options)


def spawn(environment: dict[str, str], way: str) -> subprocess.Popen[str]:
    """A process that computes in one way, and is ready."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    if environment.get("OMP_NUM_THREADS"):
        environment = {**environment, "OMP_NUM_THREADS": str(fewer())}
    process = subprocess.Popen(
        [sys.executable, *sys.argv],
        env={**clean, **environment, "BENCH_WAY": way},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ask(process)
    return process


def ask(process: subprocess.Popen[str]) -> float:
    """What a process answers when it has worked once."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def table(title: str, names: list[str], processes: list[subprocess.Popen[str]], options: argparse.Namespace) -> None:
    """Print the fastest round of each way and load, and end the processes."""
    best = np.full((len(names), len(options.busy)), np.inf)
    free: list[list[int]] = [[] for _ in options.busy]
    for _ in range(options.rounds):
        for column, busy in enumerate(options.busy):
            with others(busy):
                free[column].append(free_processors())
                for row, process in enumerate(processes):
                    best[row, column] = min(best[row, column], ask(process))
                    time.sleep(0.3)  # until the threads of the one before have stopped spinning
    for process in processes:
        process.kill()
        process.wait()
    print(f"| {title} | {' | '.join(f'{busy} busy' for busy in options.busy)} |")
    print(f"|---|{'---:|' * len(options.busy)}")
    for name, values in zip(names, best, strict=True):
        print(f"| {name} | {' | '.join(f'{value:.3g} ({value / best[0, 0]:.2f})' for value in values)} |")
    print(f"| free processors, as seen | {' | '.join(f'{min(seen)} to {max(seen)}' for seen in free)} |\n", flush=True)


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many other programs that do nothing but compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def fewer() -> int:
    """One thread less than there are processors."""
    return max(1, (os.cpu_count() or 2) - 1)


def work(options: argparse.Namespace) -> None:
    """Work once for each line that comes in, and answer with what it took."""
    way = os.environ["BENCH_WAY"]
    once = fit(options.batch) if way == "fit" else look(options.model, SESSIONS[options.model.suffix][way])
    once()
    count, unit = (options.steps, 1) if way == "fit" else (options.looks, 1000)
    for _ in sys.stdin:
        taken = [seconds(once) for _ in range(count)]
        print(unit * (sum(taken) if way == "fit" else max(taken)), flush=True)


def seconds(once: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def fit(batch: int) -> Callable[[], object]:
    """A training step."""
    from networks import EMBEDDED, training
    from threecad.allocation import keep_freed_memory

    keep_freed_memory()
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
    return training(EMBEDDED, pixels)[1]


def look(model: Path, told: dict[str, str]) -> Callable[[], object]:
    """A look of an exported network at one picture."""
    threads, told = fewer() if "threads" in told else 0, {key: value for key, value in told.items() if key != "threads"}
    if model.suffix == ".xml":
        told |= SETTINGS["openvino"] | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        compiled = import_openvino().Core().compile_model(str(model), "CPU", told)
        height, width = (compiled.inputs[0].partial_shape[axis].get_length() for axis in (2, 3))
        image = np.zeros((1, 3, height, width), np.float32)
        return lambda: compiled({0: image})
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in told.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    image = np.zeros((1, *session.get_inputs()[0].shape[1:]), np.float32)
    return lambda: session.run(None, {"image": image})


if __name__ == "__main__":
    main()
