"""Runs every benchmark of this folder, each in its own process, and prints one Markdown page.

python bench/all.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("Synthesis", ["synthesis.py"]),
    ("Data after the first epoch", ["loading.py"]),
    ("Training step and inference", ["networks.py"]),
    ("Metrics", ["metrics.py"]),
    ("PaDiM", ["padim.py"]),
    ("Weight", ["sizes.py"]),
    ("Start", ["startup.py"]),
    ("Grid", ["grid.py", "--jobs", "60", "--two-workers"]),
    ("Kills", ["kills.py", "--kills", "3"]),
)


def main() -> None:
    for title, command in RUNS:
        print(f"## {title}\n", flush=True)
        done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True)
        print(done.stdout if done.returncode == 0 else f"failed:\n\n    {done.stderr.strip()[-600:]}", flush=True)


if __name__ == "__main__":
    main()
