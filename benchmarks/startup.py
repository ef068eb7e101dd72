"""Seconds until `import limbeck` and `limbeck --help` are done, whole processes, against a bare interpreter.

python benchmarks/startup.py [--out benchmarks/results/startup.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

HERE = Path(__file__).parent
COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import limbeck": [sys.executable, "-c", "import limbeck"],
    "limbeck --help": [sys.executable, "-m", "limbeck.cli", "--help"],
    "limbeck distill --help": [sys.executable, "-m", "limbeck.cli", "distill", "--help"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE / "results" / "startup.json")
    given = parser.parse_args()
    rows = {name: statistics.median(seconds(command) for _ in range(11)) for name, command in COMMANDS.items()}
    for name, value in rows.items():
        print(f"{name:<24} {value:.3f} s")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps({"machine": machine(), "median_seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
