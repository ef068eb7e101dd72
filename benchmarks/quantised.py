"""What whole numbers cost: 8, 4 and 2 bits against their own float student, proved on three tasks.

A float student is distilled, `compress: [quantise: int8, quantise: mixed4, quantise: int4, quantise: mixed2]` makes its
descendants (mixed4 and mixed2: int8 in the first layer, int4 and int2 in the others), and the compiled C of each is proved
to keep 99 % of the FLOAT STUDENT's return (alpha .05 each, seeds that no run has seen).

    python benchmarks/quantised.py [--tasks cartpole lunarlander pendulum] [--out benchmarks/results/quantised.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import machine

import limbeck
from limbeck.contracts import Proof

HERE = Path(__file__).parent
TEACHERS = HERE.parent / "recipes" / "teachers"
RETAIN, PROOF_SEED = 0.99, 1
WIDTHS = ("int8", "mixed4", "int4", "mixed2")  # each inherits from the one before


@dataclass(frozen=True)
class Work:
    """What is distilled and compressed, and how long a proof may take."""

    env: str
    teacher: str
    student: str
    max_episodes: int
    options: tuple[str, ...] = ()


QUICK = ("export.targets=c", "report.gallery=off", "polish.enabled=false", "prove.max_episodes=256")
WORKS = {
    "cartpole": Work("CartPole-v1", str(TEACHERS / "cartpole.safetensors"), "mlp:16x16", 1000, ("imitate.rounds=6", "race.rounds=3")),
    "lunarlander": Work("LunarLander-v3", "bundled:ppo-lunar", "mlp:32x32", 4000),
    "pendulum": Work(
        "Pendulum-v1", str(TEACHERS / "pendulum.safetensors"), "mlp:16x16", 10_000, ("compression.learning_rate=1e-2",)
    ),
    "halfcheetah": Work(
        "HalfCheetah-v5", str(TEACHERS / "halfcheetah.safetensors"), "mlp:64x64", 300,
        ("collect.steps=4000", "imitate.gradient_steps=400", "verify.episodes=20", "verify.random_episodes=20",
         "race.final_episodes=8", "prove.bound_episodes=50", "prove.max_episodes=32"),
    ),
}  # fmt: skip


def measured(work: Work, folder: Path) -> dict[str, Any]:
    """The family of one task and the verdicts of its quantised members against the float one."""
    begin = time.perf_counter()
    options = (*QUICK, "compress=" + ",".join(f"quantise {width}" for width in WIDTHS), *work.options)
    accept = any("verify.episodes" in option for option in work.options)
    result = limbeck.distill(
        work.teacher, work.env, [work.student], folder / "run", options=options, accept_teacher=accept
    )
    distilled, found = time.perf_counter() - begin, []
    members = {len(member.lineage): member for member in result.members}
    teacher = folder / "run" / "students" / members[0].name / "policy.safetensors"
    for number, width in enumerate(WIDTHS, 2):  # a lineage names the float student, then each step
        member = members[number]
        begin = time.perf_counter()
        proof = limbeck.prove(
            str(folder / "run" / "artifacts" / member.name), str(teacher), work.env, retain=RETAIN, seed=PROOF_SEED,
            max_episodes=work.max_episodes, out=folder / f"{width}.json",
        )  # fmt: skip
        assert isinstance(proof, Proof)
        found.append({
            "width": width, "member": member.name, "bytes": member.size_bytes, "verdict": proof.verdict, "reason": proof.reason,
            "episodes": proof.episodes, "retention": proof.retention, "retention_low": proof.retention_low,
            "played_by": proof.played_by, "float_return": mean(proof.teacher_returns), "return": mean(proof.student_returns),
            "seconds": time.perf_counter() - begin,
        })  # fmt: skip
    return {
        **asdict(work),
        "teacher": Path(work.teacher).name,
        "float_bytes": members[0].size_bytes,
        "distill_seconds": distilled,
        "members": found,
    }


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(WORKS), default=["cartpole", "lunarlander", "pendulum"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quantised.json")
    args = parser.parse_args()
    rows: dict[str, Any] = json.loads(args.out.read_text())["tasks"] if args.out.exists() else {}
    for name in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measured(WORKS[name], Path(folder))
        for row in rows[name]["members"]:
            print(f"{name:12} {row['width']} {row['bytes']:6,} bytes: {row['verdict']}, {row['episodes']} episodes, "
                  f"{100 * row['retention']:.2f} % of the float student ({rows[name]['float_bytes']:,} bytes)")  # fmt: skip
        args.out.write_text(json.dumps({"machine": machine(), "retain": RETAIN, "tasks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
