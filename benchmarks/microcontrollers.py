"""Instructions and flash of one step on emulated Cortex-M parts, float and whole numbers (random weights: only cost counts).

Students: 8-64-64-4; a picture of 10 x 10 x 4 through 8 channels of 3 x 3 and 16 units; 8 numbers into a GRU of 32.

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

from limbeck.contracts import (
    BITS,
    Blueprint,
    Conv,
    Dense,
    Device,
    Floats,
    Gru,
    Head,
    Layer,
    Quantise,
    Quantised,
    QuantisedConv,
    QuantisedGru,
    Readout,
    Spec,
)
from limbeck.exporters import c
from limbeck.runtimes import emulated

SIZES = (8, 64, 64)
PICTURE = (10, 10, 4)  # height, width, channels
ACTIONS = 4
PARTS = ("cortex-m0", "cortex-m3", "cortex-m4f")
ROWS = 16


def drawn(rng: np.random.Generator, width: str, *shape: int) -> tuple[Floats, Floats]:
    """Weights [..., in, out] of a width, and biases."""
    bias = np.zeros(shape[-1], np.float32)
    if width == "float32":
        return rng.normal(0, shape[-2] ** -0.5, shape).astype(np.float32), bias
    most = min(BITS[width], 63)  # a sum of 512 products has 22 bits
    return rng.integers(-most, most + 1, shape).astype(np.float32), bias


def scaled(n: int, by: float = 200, shift: float = 18) -> tuple[Floats, Floats]:
    """Multipliers and shifts of n sums."""
    return np.full(n, by, np.float32), np.full(n, shift, np.float32)


def quantiser(n: int, times: int = 1) -> Quantise:
    return Quantise(np.zeros(n, np.float32), np.full(n, 40, np.float32), times)


def dense(rng: np.random.Generator, width: str, n_in: int, n_out: int, activation: str) -> Layer:
    weight, bias = drawn(rng, width, n_in, n_out)
    if width == "float32":
        return Dense(weight, bias, activation)
    return Quantised(weight, bias, *scaled(n_out), activation, width)


def student(shape: tuple[int, ...], width: str, rng: np.random.Generator, *layers: Layer) -> Blueprint:
    """The layers and a last one for the actions."""
    weight, bias = drawn(rng, width, layers[-1].outputs, ACTIONS)
    scale = np.full(ACTIONS, 1e-4, np.float32)
    last = Dense(weight, bias, "identity") if width == "float32" else Readout(weight, bias, scale, width)
    observed, acted = spaces.Box(-3, 3, shape, np.float32), spaces.Discrete(ACTIONS)
    return Blueprint(Spec(observed, acted, "cost"), Head("categorical", (ACTIONS,)), (*layers, last))


def plain(width: str, activation: str) -> Blueprint:
    """8-64-64-4."""
    rng = np.random.default_rng(0)
    front = [] if width == "float32" else [quantiser(SIZES[0])]
    inner = [dense(rng, width, n_in, n_out, activation) for n_in, n_out in itertools.pairwise(SIZES)]
    return student(SIZES[:1], width, rng, *front, *inner)


def picture(width: str) -> Blueprint:
    """A convolution and a dense layer."""
    rng, size = np.random.default_rng(0), PICTURE[:2]
    weight, bias = drawn(rng, width, 3, 3, PICTURE[2], 8)
    if width == "float32":
        front: list[Layer] = [Conv(weight, bias, size, activation="relu")]
    else:
        front = [quantiser(1, 400), QuantisedConv(weight, bias, *scaled(8), size, width=width)]
    return student(PICTURE, width, rng, *front, dense(rng, width, front[-1].outputs, 16, "relu"))


def memory(width: str) -> Blueprint:
    """A gated memory."""
    rng, n_in, size = np.random.default_rng(0), SIZES[0], 32
    (weight_x, bias_x), (weight_h, bias_h) = (drawn(rng, width, n, 3 * size) for n in (n_in, size))
    if width == "float32":
        return student(SIZES[:1], width, rng, Gru(weight_x, weight_h, bias_x, bias_h))
    (times_x, shift_x), (times_h, shift_h) = (scaled(3 * size, 200, 14) for _ in range(2))
    cell = QuantisedGru(weight_x, weight_h, bias_x, bias_h, times_x, times_h, shift_x, shift_h, width)
    return student(SIZES[:1], width, rng, quantiser(n_in), cell)


def measured(one: Blueprint, part: str) -> Device:
    """What a step costs on a part."""
    size = one.layers[0].inputs
    obs, first = np.random.default_rng(1).normal(0, 1, (ROWS, size)).astype(np.float32), np.arange(ROWS) == 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.h").write_text(c.generate(one)[0])
        return emulated.cost(Path(folder), one.spec, one.head, one.view, part, obs, first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "microcontrollers.json")
    out: Path = parser.parse_args().out
    result: dict[str, Any] = {"machine": machine(), "sizes": (*SIZES, ACTIONS), "picture": PICTURE}
    widths = ("float32", "int8", "int4", "ternary")
    students = {f"{w} {a}": plain(w, a) for a in ("relu", "tanh") for w in widths}
    students |= {f"{w} picture": picture(w) for w in widths} | {f"{w} memory": memory(w) for w in widths}
    for (name, one), part in itertools.product(students.items(), PARTS):
        cost = measured(one, part)
        result[f"{name} {part}"] = asdict(cost)
        print(
            f"{name} {part}: {cost.instructions:,} instructions, {cost.flash_bytes:,} bytes, {cost.stack_bytes:,} of stack"
        )
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
