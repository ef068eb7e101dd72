"""Instructions and flash of one step of 8-64-64-4 on emulated Cortex-M parts, float and whole numbers (random weights: only cost counts).

python benchmarks/microcontrollers.py [--out benchmarks/results/microcontrollers.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from machine import machine

from limbeck.contracts import BITS, Blueprint, Dense, Head, Layer, Quantise, Quantised, Readout, Spec
from limbeck.exporters import c
from limbeck.runtimes import emulated

SIZES = (8, 64, 64, 4)
PARTS = ("cortex-m0", "cortex-m3", "cortex-m4f")
ROWS = 16


def policy(width: str, activation: str) -> Blueprint:
    rng, last = np.random.default_rng(0), len(SIZES) - 2
    layers: list[Layer] = []
    if width != "float32":
        layers.append(Quantise(np.zeros(SIZES[0], np.float32), np.full(SIZES[0], 40, np.float32)))
    for i, (n_in, n_out) in enumerate(itertools.pairwise(SIZES)):
        if width == "float32":
            weight = rng.normal(0, n_in**-0.5, (n_in, n_out)).astype(np.float32)
            layers.append(Dense(weight, np.zeros(n_out, np.float32), "identity" if i == last else activation))
            continue
        weight, bias = (
            rng.integers(-BITS[width], BITS[width] + 1, (n_in, n_out)).astype(np.float32),
            np.zeros(n_out, np.float32),
        )
        if i == last:
            layers.append(Readout(weight, bias, np.full(n_out, 1e-4, np.float32), width))
        else:
            full = np.full(n_out, 200, np.float32)
            layers.append(Quantised(weight, bias, full, np.full(n_out, 18, np.float32), activation, width))
    observed, acted = spaces.Box(-3, 3, (SIZES[0],), np.float32), spaces.Discrete(SIZES[-1])
    return Blueprint(Spec(observed, acted, "cost"), Head("categorical", (SIZES[-1],)), tuple(layers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "microcontrollers.json")
    out: Path = parser.parse_args().out
    obs = np.random.default_rng(1).normal(0, 1, (ROWS, SIZES[0])).astype(np.float32)
    result: dict[str, Any] = {"machine": machine(), "sizes": SIZES}
    for activation in ("relu", "tanh"):
        for width in ("float32", "int8", "int4", "ternary"):
            student = policy(width, activation)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "policy.h").write_text(c.generate(student)[0])
                for part in PARTS:
                    cost = emulated.cost(
                        Path(folder), student.spec, student.head, student.view, part, obs, np.ones(ROWS, bool)
                    )
                    result[f"{width} {activation} {part}"] = asdict(cost)
                    print(
                        f"{width} {activation} {part}: {cost.instructions:,} instructions, {cost.flash_bytes:,} bytes"
                    )
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
