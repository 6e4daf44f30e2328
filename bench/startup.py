"""Times `threecad --help` as a whole process, and says whether torch was loaded for it.

python bench/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

HELP = [sys.executable, "-m", "threecad", "--help"]
LOADED = "import sys, threecad.cli; print('torch' in sys.modules)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    with_torch = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True
    ).stdout.strip()
    print("| command | median, s | slowest, s | loads torch |")
    print("|---|---|---|---|")
    print(f"| threecad --help | {statistics.median(seconds[1:]):.2f} | {max(seconds[1:]):.2f} | {with_torch} |")


if __name__ == "__main__":
    main()
