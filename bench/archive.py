"""An archive of small images on Ray, one of two workers killed midway: every image exactly once, as on one machine.

python bench/archive.py [--images 20000] [--compared 2000] [--workers 2] [--maps]
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from grid import PLAN, draw, save
from threecad.benchmark.plan import read_plan
from threecad.engines import Engine
from threecad.fitting import fit
from threecad.prediction import predict_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--compared", type=int, default=2_000, help="images that one process looks at, too")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--maps", action="store_true", help="write maps and overlays, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, archive = fit_tiny(folder), folder / "archive"
        noise = np.random.default_rng(1)
        for number in range(options.images):
            image = noise.integers(100, 120, (48, 64, 3), np.uint8)
            if number % 50 == 0:
                image[10:20, 20:30] = 0
            save(archive / f"{number // 1000:03d}" / f"{number:06d}.png", image)
        files = {"maps": options.maps, "overlays": options.maps}
        images = sorted(archive.rglob("*.png"))
        killed: list[int] = []

        def kill_midway(done: int, total: int) -> None:
            if done >= total // 2 and not killed:
                killed.append(kill_a_worker())

        start = time.perf_counter()
        engine = Engine("ray", workers=options.workers)
        predict_files(run, [archive], folder / "ray", **files, engine=engine, progress=kill_midway)
        ray_s = time.perf_counter() - start
        predict_files(run, images[: options.compared], folder / "here", **files)
        there, here = (rows_of(folder / out / "predictions.csv") for out in ("ray", "here"))
    pairs = list(zip(here, there, strict=False))
    same = sum(a | {"score": ""} == b | {"score": ""} for a, b in pairs)
    apart = max(abs(float(a["score"]) / float(b["score"]) - 1) for a, b in pairs)
    print("| what | found |")
    print("|---|---|")
    print(f"| images | {options.images} of 48×64 px |")
    print(f"| seconds on Ray, {options.workers} workers, its start included | {ray_s:.0f} |")
    print(f"| workers killed when half was done | {len(killed)} |")
    print(f"| rows; images among them | {len(there)}; {len({row['image'] for row in there})} |")
    print(f"| in the order of the input | {[row['image'] for row in there] == [str(image) for image in images]} |")
    print(f"| images that could not be inspected | {sum(bool(row['error']) for row in there)} |")
    print(f"| of {len(pairs)} rows, as one process writes them | {same} |")
    print(f"| their scores differ by, at most | {apart:.1e} of the score |")


def fit_tiny(folder: Path) -> Path:
    """The run of a PaDiM on drawn parts, at 64 px with random weights: a second, and every step of a real one."""
    draw(folder / "data" / "part")
    (folder / "plan.toml").write_text(PLAN.format(seeds=[0]), encoding="utf-8")
    plan = read_plan(folder / "plan.toml")
    (job,) = plan.jobs()
    assert plan.data is not None
    fit(job.method, plan.data, folder / "run", settings=job.settings)
    return folder / "run"


def kill_a_worker() -> int:
    """The process of this program's own cluster that has been killed, one of those that are at work."""
    victim = next(pid for pid in at_work() if parent_of(parent_of(pid)) == os.getpid())
    os.kill(victim, signal.SIGKILL)
    return victim


def at_work() -> list[int]:
    """Processes in which Ray runs a task; it names them so."""
    return [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/cmdline") if _read(file).startswith("ray::_")]


def parent_of(pid: int) -> int:
    """A process's parent; 0 where it is gone."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""  # it has ended meanwhile


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()
