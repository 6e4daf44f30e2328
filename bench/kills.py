"""Whether kills do any harm: a grid that is killed at ten random moments and run again ends with the same table.

python bench/kills.py [--kills 10] [--engine local|ray] [--seed 0]

A grid that had all of its rows when it was killed is compared, and the next one begins with nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grid import draw, write_plan

JOBS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    print("| killed after | rows that were there |")
    print("|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "data" / "part")
        command = [sys.executable, "-m", "threecad", "benchmark", str(write_plan(folder, JOBS))]
        command += ["--engine", options.engine, "--out"]
        start = time.perf_counter()
        subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
        whole_s = time.perf_counter() - start
        whole, killed = (folder / out / "tables.csv" for out in ("whole", "killed"))
        compared = same = 0
        for number in range(1, options.kills + 1):
            moment = moments.uniform(0, whole_s)
            killed_after(moment, [*command, str(folder / "killed")])
            rows = len(list((folder / "killed" / "rows").rglob("*.json")))
            print(f"| {moment:.1f} s of {whole_s:.1f} s | {rows} of {JOBS} |", flush=True)
            if rows == JOBS or number == options.kills:
                last = subprocess.run([*command, str(folder / "killed")], capture_output=True, text=True)
                if last.returncode:
                    sys.exit(f"the grid did not run to its end: {last.stderr.strip()}")
                compared, same = compared + 1, same + (whole.read_bytes() == killed.read_bytes())
                shutil.rmtree(folder / "killed")
    print(f"\n{compared} grids run to their end after kills; {same} tables are that of a grid that was not killed.")


def killed_after(seconds: float, command: list[str]) -> None:
    """Run a command and kill it after so long, unless it has ended by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
