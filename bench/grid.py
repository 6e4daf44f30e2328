"""What a grid costs besides its fits: overhead a job, seconds for tables, and what a second worker brings.

python bench/grid.py [--jobs 300] [--plain 50] [--rows 10000] [--two-workers] [--engine local|ray]

Seconds are those of processors, which other work on the machine does not lengthen; the gain of a second worker is one
of the clock and means something only where two processors are free.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.plan import read_plan
from threecad.benchmark.rows import read_rows
from threecad.benchmark.run import run_plan
from threecad.data.catalog import DATASETS
from threecad.engines import Engine
from threecad.evaluation import evaluate_run
from threecad.fitting import fit
from threecad.methods import METHODS

PLAN = """
data = "data"
methods = ["padim"]
seeds = {seeds}
backbone = "resnet10t.c3_in1k"

[settings.method]
weights = "random"
image_size = 64
features = 12
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--plain", type=int, default=50, help="of these jobs, how many also run without a grid")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--two-workers", action="store_true")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    print("| what | found |")
    print("|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "data" / "part")
        plain_s, grid_s = of_a_job(folder, options.jobs, options.plain, Engine(options.engine))
        print(f"| a fit and its evaluation alone, mean of {options.plain} | {plain_s:.2f} s |")
        print(f"| a job of a grid of {options.jobs}, {options.engine}, all of the grid counted in | {grid_s:.2f} s |")
        print(f"| overhead a job | {grid_s - plain_s:.2f} s |")
        read_s, write_s = tabulate(folder, options.rows)
        print(f"| {options.rows} rows read and checked, then printed | {read_s:.2f} + {write_s:.2f} s |")
        if options.two_workers:
            print(f"| two single-threaded workers against one | {two_against_one(folder, options.engine):.2f} × |")


def draw(category: Path) -> None:
    """Eight good parts to learn from, four good and four marked ones to test on, 48×64 px."""
    noise = np.random.default_rng(0)
    for place, count in (("train/good", 8), ("test/good", 4), ("test/spot", 4)):
        for number in range(count):
            image, mask = noise.integers(100, 120, (48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
            if place == "test/spot":
                image[10:20, 20:30] = 0
                mask[10:20, 20:30] = 255
                save(category / "ground_truth" / "spot" / f"{number}.png", mask)
            save(category / place / f"{number}.png", image)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_plan(folder: Path, jobs: int) -> Path:
    file = folder / "plan.toml"
    file.write_text(PLAN.format(seeds=list(range(jobs))), encoding="utf-8")
    return file


@contextmanager
def processor_seconds() -> Iterator[list[float]]:
    """Within, processors work; the list then holds how many seconds, processes that were started and ended included."""

    def now() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    start, found = now(), []
    yield found
    found.append(now() - start)


def of_a_job(folder: Path, count: int, plain: int, engine: Engine) -> tuple[float, float]:
    """Seconds of a fit and its evaluation one after another in this process, and of a job of a grid of the same."""
    plan = read_plan(write_plan(folder, count))
    assert plan.data is not None
    for number, job in enumerate(list(plan.jobs())[: plain + 1]):
        if number == 1:  # the first one loads the libraries
            start = time.process_time()
        run = folder / "plain" / str(number)
        fit(job.method, plan.data, run, settings=job.settings)
        evaluate_run(run, plan.data)
    plain_s = (time.process_time() - start) / plain
    with processor_seconds() as found:
        report = run_plan(plan, folder / "grid", engine=engine)
    assert len(report.done) == count, report.failed
    return plain_s, found[0] / count


def tabulate(folder: Path, count: int) -> tuple[float, float]:
    """Seconds to read so many rows, of all methods on the categories of 3CAD, and to print them as Markdown."""
    template = json.loads(next((folder / "grid" / "rows").rglob("*.json")).read_text(encoding="utf-8"))
    lines = list(product(METHODS, [category.name for category in DATASETS["3cad"].categories]))
    for number in range(count):
        (method, category), seed = lines[number % len(lines)], number // len(lines)
        key = template["benchmark"]["key"] | {"seed": seed, "categories": [category]}
        row = template | {"method": method, "category": category, "seed": seed}
        file = folder / "many" / "rows" / method / category / f"{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row | {"benchmark": template["benchmark"] | {"key": key}}), encoding="utf-8")
    times = [time.process_time()]
    rows = read_rows([folder / "many"])
    times.append(time.process_time())
    write_tables(rows)
    return times[1] - times[0], time.process_time() - times[1]


def two_against_one(folder: Path, kind: str) -> float:
    """How many times as fast a grid of 80 jobs is with two workers of one thread, the better of two runs each."""
    plan = read_plan(write_plan(folder, 80))
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn, workers in product(range(2), times):
        start = time.perf_counter()
        run_plan(plan, folder / f"workers-{workers}-{turn}", engine=Engine(kind, workers=workers))
        times[workers].append(time.perf_counter() - start)
    return min(times[1]) / min(times[2])


if __name__ == "__main__":
    main()
