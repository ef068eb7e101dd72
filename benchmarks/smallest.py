"""The smallest LunarLander student proved to retain 99 % of the bundled teacher, and what it takes on a Cortex-M4F.

python benchmarks/smallest.py [--out benchmarks/results/smallest.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

import limbeck
from limbeck.contracts import RunResult

STUDENTS = ("mlp:10@4", "mlp:9@4", "mlp:8@6")
OPTIONS = (
    "imitate.rounds=24",
    "race.final_episodes=200",
    "prove.max_episodes=4000",
    "report.gallery=off",
    "export.targets=c",
)


def told(result: RunResult) -> list[dict[str, Any]]:
    """One row a member: what was claimed, on how many episodes, and its cost on each part."""
    rows = []
    for member in result.members:
        proof = member.proof
        devices = {d.name: [d.flash_bytes, d.instructions] for a in member.artifacts for d in a.devices}
        rows.append({"member": member.name, "numbers": member.parameters, "c_bytes": member.size_bytes,
                     "verdict": proof and proof.verdict, "retain": proof and proof.retain, "episodes": proof and proof.episodes,
                     "estimate": proof and proof.retention, "flash_bytes and instructions": devices})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smallest.json")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = limbeck.distill("bundled:ppo-lunar", "LunarLander-v3", STUDENTS, run, retain=0.99, options=OPTIONS)
        rows = told(result)
    out.write_text(json.dumps({"machine": machine(), "students": STUDENTS, "members": rows}, indent=1) + "\n")
    print(json.dumps(rows[-1]))


if __name__ == "__main__":
    main()
