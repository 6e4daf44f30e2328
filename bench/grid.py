"""What a grid costs besides its fits: overhead a job, seconds for tables, and whether kills do any harm.

python bench/grid.py [--jobs 300] [--rows 10000] [--kills 10] [--engine local|ray]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.plan import read_plan
from threecad.benchmark.rows import read_rows
from threecad.benchmark.run import run_plan
from threecad.engines import Engine
from threecad.evaluation import evaluate_run
from threecad.fitting import fit

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
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    print("| what | found |")
    print("|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "data" / "part")
        print(f"| overhead a job, {options.jobs} jobs, {options.engine} | {overhead(Path(folder), options):.2f} s |")
        print(f"| tables of {options.rows} rows | {tabulate(Path(folder), options.rows):.2f} s |")
        same = "the same table" if kill(Path(folder), options) else "ANOTHER TABLE"
        print(f"| killed {options.kills} times, then run to its end | {same} |")


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


def overhead(folder: Path, options: argparse.Namespace) -> float:
    """Seconds a job that a grid takes longer than the same fits and evaluations one after another."""
    plan = read_plan(write_plan(folder, options.jobs))
    assert plan.data is not None
    start = time.perf_counter()
    for number, job in enumerate(plan.jobs()):
        run = folder / "plain" / str(number)
        fit(job.method, plan.data, run, settings=job.settings)
        evaluate_run(run, plan.data)
    plain_s = time.perf_counter() - start
    start = time.perf_counter()
    report = run_plan(plan, folder / "grid", engine=Engine(options.engine))
    assert len(report.done) == options.jobs, report.failed
    return (time.perf_counter() - start - plain_s) / options.jobs


def tabulate(folder: Path, count: int) -> float:
    """Seconds for Markdown of so many rows."""
    template = json.loads(next((folder / "grid" / "rows").rglob("*.json")).read_text(encoding="utf-8"))
    rows = folder / "many" / "rows"
    rows.mkdir(parents=True)
    for number in range(count):
        (rows / f"{number}.json").write_text(json.dumps(template | {"seed": number}), encoding="utf-8")
    start = time.process_time()
    write_tables(read_rows([folder / "many"]))
    return time.process_time() - start


def kill(folder: Path, options: argparse.Namespace) -> bool:
    """Whether a grid that was killed at random moments ends with the table of one that was not."""

    def command(out: str) -> list[str]:
        plan = str(write_plan(folder, 3))
        return [
            sys.executable,
            "-m",
            "threecad",
            "benchmark",
            plan,
            "--out",
            str(folder / out),
            "--engine",
            options.engine,
        ]

    start = time.perf_counter()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole_s = time.perf_counter() - start
    for _ in range(options.kills):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, whole_s))
        process.kill()
        process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True)
    whole, killed = ((folder / out / "tables.csv").read_text(encoding="utf-8") for out in ("whole", "killed"))
    return whole == killed


if __name__ == "__main__":
    main()
