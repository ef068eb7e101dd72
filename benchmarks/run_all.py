"""Every published number again, one after the other, into benchmarks/results/ (about an hour on two quiet cores)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = (
    ["startup.py"],
    ["teachers.py"],
    ["c_latency.py"],
    ["family.py"],
    ["controllers.py"],
    ["quantised.py"],
    ["microcontrollers.py"],
    ["smallest.py"],
    ["distillers.py", "lunarlander", "--peers"],
    ["distillers.py", "halfcheetah", "--peers"],
)


def main() -> None:
    for name, *flags in COMMANDS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / name), *flags], check=True)


if __name__ == "__main__":
    main()
