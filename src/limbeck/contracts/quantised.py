"""Layers in whole numbers: what a quantised student computes, the same on every machine.

All rows are float32 that hold whole numbers below 2**24, so the reference is exact in any order of summation, and an
exporter that uses int8 and int32 gives the same bits. Real numbers enter in `Quantise` and come back in `Readout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from limbeck.contracts.policies import Floats

LEVELS = 127  # a quantised number lies in -127..127; after ReLU in 0..127
BITS: Mapping[str, int] = {"int8": 127, "int4": 7, "int2": 1, "ternary": 1}  # width -> largest weight; see `width`
TANH_STEPS = 32  # a tanh reads q / 32 and gives 127 tanh(q / 32), from a table of 255 numbers
LARGEST_SUM = 2**22 - 1  # a sum times a multiplier of 8 bits, plus half a step, stays within 31 bits
MOST_INPUTS = 2**15  # so many products of two bytes stay within 31 bits
SCALES = (2.0**-100, 2.0**100)  # of a quantiser: times 2**24 a scale is still a float32
QUANTISED_ACTIVATIONS = ("identity", "relu", "tanh", "hardtanh")


class _Named(Protocol):
    @property
    def kind(self) -> str: ...


def storage_bits(width: str) -> int:
    """Bits of one stored weight; ternary numbers take 2.

    >>> [storage_bits(width) for width in BITS]
    [8, 4, 2, 2]
    """
    return {"int8": 8, "int4": 4}.get(width, 2)


def least(width: str) -> int:
    """The least weight of a width: int2 has -2..1, the others are symmetric."""
    return -BITS[width] - (width == "int2")


def tanh_levels() -> Floats:
    """[255] what a quantised tanh gives for -127..127: round(127 tanh(q / 32)), no entry of which is near a half.

    >>> tanh_levels()[[0, 126, 127, 128, 143, 254]].tolist()
    [-127.0, -4.0, 0.0, 4.0, 59.0, 127.0]
    """
    return np.round(LEVELS * np.tanh(np.arange(-LEVELS, LEVELS + 1) / TANH_STEPS)).astype(np.float32)


def levels_problem(layers: Sequence[_Named]) -> str:
    """What is out of order: whole numbers come from `Quantise`, go through `Quantised` and leave by `Readout` only."""
    whole = False
    for layer in layers:
        if whole != (layer.kind in ("quantised", "readout")):
            return (
                f"a {layer.kind} layer reads the levels of a quantised one: only quantised and readout layers can"
                if whole
                else f"a {layer.kind} layer without a quantise layer in front of it"
            )
        whole = layer.kind in ("quantise", "quantised")
    return "a quantised policy without a readout layer at its end" if whole else ""


@dataclass(frozen=True)
class Quantise:
    """q = clip(round((x - offset) * scale), -127, 127); halves go up, numbers that are none become 0.

    With v = (x - offset) * scale in float32, clipped, q = floor(v + 0.5) without a rounding of the sum: in float64 here
    and in ONNX, from a fixed-point number of 24 fractional bits in C.
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
        low, high = SCALES
        sound = ((self.scale >= low) & (self.scale <= high)).all()
        return "" if sound else f"a quantiser whose scale is not in {low:.0e}..{high:.0e}"


@dataclass(frozen=True)
class Quantised:
    """A dense layer in whole numbers.

    sum[j] = bias[j] + sum_i x[i] weight[i, j]; then r = (sum * multiplier[j] + 2**(shift[j] - 1)) >> shift[j], and
    relu: clip(r, 0, 127); identity, hardtanh: clip(r, -127, 127); tanh: table[clip(r, -127, 127)].
    Identity and hardtanh are the same clip; behind a hardtanh, 127 stands for 1.
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
    most, lowest = BITS[width], least(width)
    if not _whole(weight, lowest, most):
        return f"a quantised layer whose weights are not whole numbers in {lowest}..{most}"
    if not _whole(bias, -LARGEST_SUM, LARGEST_SUM):
        return "a quantised layer whose biases are not whole numbers of 22 bits"
    if len(weight) > MOST_INPUTS:
        return f"a quantised layer of {len(weight)} inputs, allowed {MOST_INPUTS}"
    worst = np.abs(weight).sum(0).astype(np.float64) * LEVELS + np.abs(bias)
    return "" if (worst <= LARGEST_SUM).all() else "a quantised layer whose sums can leave 22 bits"
