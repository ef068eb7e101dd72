"""The smallest LunarLander students proved to retain 99 % of the bundled teacher: networks, and what they take on a
Cortex-M4F, and linear rules of few numbers.

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
RULES = ("linear", "rule:30", "rule:24")
OPTIONS = ("race.final_episodes=200", "report.gallery=off", "export.targets=c")
OF_STUDENTS = ("imitate.rounds=24", "prove.max_episodes=4000")
OF_RULES = ("imitate.rounds=12", "prove.max_episodes=6000")


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
    members, rules = proved(STUDENTS, OF_STUDENTS), proved(RULES, OF_RULES)
    found = {"machine": machine(), "students": STUDENTS, "members": members, "rules": rules}
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps([members[-1], rules[-1]]))


def proved(students: tuple[str, ...], options: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of one run with these students."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        chosen = (*OPTIONS, *options)
        return told(limbeck.distill("bundled:ppo-lunar", "LunarLander-v3", students, run, retain=0.99, options=chosen))


if __name__ == "__main__":
    main()
