"""Times `threecad --help` as a whole process beside an interpreter that does nothing, and says whether torch is loaded.

python bench/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

HELP = [sys.executable, "-m", "threecad", "--help"]
NOTHING = [sys.executable, "-c", "pass"]
LOADED = "import sys, threecad.cli; print('torch' in sys.modules)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    answers, bare = seconds(HELP, rounds), seconds(NOTHING, rounds)
    with_torch = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True
    ).stdout.strip()
    median, of_bare = statistics.median(answers), statistics.median(bare)
    print("| command | median, s | slowest, s | times `python -c pass` | loads torch |")
    print("|---|---|---|---|---|")
    print(f"| threecad --help | {median:.2f} | {max(answers):.2f} | {median / of_bare:.1f} | {with_torch} |")


def seconds(command: list[str], rounds: int) -> list[float]:
    """Wall time of each of `rounds` runs of `command`, after one that warms the file cache."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return taken[1:]


if __name__ == "__main__":
    main()
