"""What a family costs: a member in the stack against alone, and the demo's family against separate runs.

python benchmarks/family.py [--out benchmarks/results/family.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from machine import machine

import limbeck
from limbeck import imitation, objective
from limbeck.contracts import Head, Spec, View
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.stack import Port

HERE = Path(__file__).parent
SIZES = ("mlp:64x64", "mlp:32x32", "mlp:16x16", "mlp:8x8", "mlp:16", "mlp:8", "mlp:4", "linear")
ROUNDS = 15  # of timings; the fastest of each counts, in turn, so that noise hits both sides


def stack_cost(spec: str, members: int, steps: int = 100) -> dict[str, float]:
    """Seconds per gradient step of one member: `members` in a stack, and alone."""
    port = Port(
        Spec(gym.spaces.Box(-1, 1, (8,), np.float32), gym.spaces.Discrete(4), "t"), View(), Head("categorical", (4,)), 8
    )
    rng = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(4096, 8, generator=rng), torch.randn(4096, 4, generator=rng).log_softmax(-1)
    table = imitation.Table("t", inputs, torch.zeros(4096, dtype=torch.bool), {"params": labels}, {}, port.head)
    pace, terms = imitation.Pace(steps, 512, 1e-3, 1.0), objective.mixture("kl", 0.0)

    def once(count: int) -> Callable[[], None]:
        family = families.build(parse([f"{spec}@{count}"]), {"t": port}, 0)
        return lambda: void(imitation.imitate(family, {"t": table}, terms, pace, 0, 0))

    together, alone = fastest(once(members), once(1))
    return {
        "members": members,
        "stacked_seconds": together / steps / members,
        "alone_seconds": alone / steps,
        "ratio": together / members / alone,
    }


def fastest(*calls: Callable[[], None]) -> list[float]:
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def void(value: object) -> None:
    """A call for its time alone."""


def whole_family(seeds: int, retain: float = 0.95) -> dict[str, float]:
    """Wall seconds of the demo's family in one run, and of one run per member, everything included."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        limbeck.distill(
            "bundled:ppo-lunar",
            "LunarLander-v3",
            [f"{s}@{seeds}" for s in SIZES],
            Path(folder) / "family",
            retain=retain,
        )
        together = time.perf_counter() - begin
        separate = 0.0
        for size in SIZES:  # the runs of one size differ in their seed alone: one is timed and counted `seeds` times
            begin = time.perf_counter()
            limbeck.distill(
                "bundled:ppo-lunar", "LunarLander-v3", [size], Path(folder) / size.replace(":", "-"), retain=retain
            )
            separate += seeds * (time.perf_counter() - begin)
    return {
        "members": seeds * len(SIZES),
        "family_seconds": together,
        "separate_seconds": separate,
        "ratio": together / separate,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE / "results" / "family.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stacks = {
        f"{spec} x{k}": stack_cost(spec, k)
        for spec in ("linear", "mlp:4", "mlp:16", "mlp:16x16", "mlp:32x32")
        for k in (4, 8, 16)
    }
    for name, row in stacks.items():
        print(
            f"{name:<14} {1e6 * row['stacked_seconds']:7.0f} us per member, alone {1e6 * row['alone_seconds']:5.0f} us, ratio {row['ratio']:.2f}"
        )
    result = {"machine": machine(), "stack": stacks, "demo_family": whole_family(3)}
    print(json.dumps(result["demo_family"], indent=1))
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
