"""Layers in whole numbers: what a quantised student computes, the same on every machine.

All rows are float32 that hold whole numbers below 2**24, so the reference is exact in any order of summation, and an
exporter that uses int8 and int32 gives the same bits. Real numbers enter in `Quantise` and come back in `Readout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from limbeck.contracts.policies import Floats

LEVELS = 127  # a quantised number lies in -127..127; after ReLU in 0..127
BITS: Mapping[str, int] = {"int8": 127, "int4": 7, "int2": 1, "ternary": 1}  # width -> largest weight; see `width`
TANH_STEPS = 32  # a tanh reads q / 32 and gives 127 tanh(q / 32), from a table of 255 numbers
LARGEST_SUM = 2**22 - 1  # a sum times a multiplier of 8 bits, plus half a step, stays within 31 bits
QUANTISED_ACTIVATIONS = ("identity", "relu", "tanh", "hardtanh")


@dataclass(frozen=True)
class Quantise:
    """q = clip(round((x - offset) * scale), -127, 127); halves go up, numbers that are none become 0.

    In C: v = (x - offset) * scale; clipped to +-127 as a float; then q = floor(v + 0.5), written so that no fused
    multiply-add can change it (docs/deployment.md).
    """

    offset: Floats  # [n]
    scale: Floats  # [n] quantised steps per unit
    kind: ClassVar[str] = "quantise"

    @property
    def inputs(self) -> int:
        return int(self.offset.size)

    @property
    def outputs(self) -> int:
        return int(self.offset.size)

    @property
    def multiply_adds(self) -> int:
        return int(self.offset.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"offset": (self.inputs,), "scale": (self.inputs,)}

    def problem(self) -> str:
        return "" if (self.scale > 0).all() else "a quantiser whose scale is not positive"


@dataclass(frozen=True)
class Quantised:
    """A dense layer in whole numbers.

    sum[j] = bias[j] + sum_i x[i] weight[i, j]; then r = (sum * multiplier[j] + 2**(shift[j] - 1)) >> shift[j], and
    relu: clip(r, 0, 127); identity, hardtanh: clip(r, -127, 127); tanh: table[clip(r, -127, 127)].
    """

    weight: Floats  # [in, out] whole numbers within the width's range
    bias: Floats  # [out] whole numbers
    multiplier: Floats  # [out] whole numbers 1..255
    shift: Floats  # [out] whole numbers 1..31
    activation: str = "relu"
    width: str = "int8"  # of the stored weights: int8, int4, int2 or ternary
    kind: ClassVar[str] = "quantised"

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        out = (self.outputs,)
        return {"weight": (self.inputs, self.outputs), "bias": out, "multiplier": out, "shift": out}

    def problem(self) -> str:
        if self.activation not in QUANTISED_ACTIVATIONS:
            return f"a quantised layer with {self.activation!r}, allowed {', '.join(QUANTISED_ACTIVATIONS)}"
        if not _whole(self.multiplier, 1, 255) or not _whole(self.shift, 1, 31):
            return "a quantised layer whose multiplier is not in 1..255 or whose shift is not in 1..31"
        return _sums_problem(self.weight, self.bias, self.width)


@dataclass(frozen=True)
class Readout:
    """The last quantised layer: y[j] = (bias[j] + sum_i x[i] weight[i, j]) * scale[j], real numbers for the head."""

    weight: Floats  # [in, out] whole numbers within the width's range
    bias: Floats  # [out] whole numbers
    scale: Floats  # [out] units per step
    width: str = "int8"
    kind: ClassVar[str] = "readout"

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def multiply_adds(self) -> int:
        return int(self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (self.inputs, self.outputs), "bias": (self.outputs,), "scale": (self.outputs,)}

    def problem(self) -> str:
        return _sums_problem(self.weight, self.bias, self.width)


def _whole(array: Floats, low: int, high: int) -> bool:
    return bool(((array == np.round(array)) & (array >= low) & (array <= high)).all())


def _sums_problem(weight: Floats, bias: Floats, width: str) -> str:
    """Stored numbers outside of their width, and sums that could leave 22 bits."""
    if width not in BITS:
        return f"unknown width {width!r}, allowed {', '.join(BITS)}"
    most = BITS[width]
    lowest = -most - (width == "int2")  # int2 has -2..1, the others are symmetric
    if not _whole(weight, lowest, most):
        return f"a quantised layer whose weights are not whole numbers in {lowest}..{most}"
    if not _whole(bias, -LARGEST_SUM, LARGEST_SUM):
        return "a quantised layer whose biases are not whole numbers of 22 bits"
    worst = np.abs(weight).sum(0).astype(np.float64) * LEVELS + np.abs(bias)
    return "" if (worst <= LARGEST_SUM).all() else "a quantised layer whose sums can leave 22 bits"
