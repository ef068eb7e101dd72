"""Layers in whole numbers: what a quantised student computes, the same on every machine.

All rows are float32 that hold whole numbers below 2**24, so the reference is exact in any order of summation, and an
exporter that uses int8 and int32 gives the same bits. Real numbers enter in `Quantise` and come back in `Readout`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from limbeck.contracts.policies import Floats
from limbeck.contracts.windowing import window_problem, windows

LEVELS = 127  # a quantised number lies in -127..127; after ReLU in 0..127
BITS: Mapping[str, int] = {"int8": 127, "int4": 7, "int2": 1, "ternary": 1}  # width -> largest weight; see `width`
TANH_STEPS = 32  # a tanh reads q / 32 and gives 127 tanh(q / 32), from a table of 255 numbers
LARGEST_SUM = 2**22 - 1  # a sum times a multiplier of 8 bits, plus half a step, stays within 31 bits
MOST_INPUTS = 2**15  # so many products of two bytes stay within 31 bits
MOST_TIMES = 2**24  # stretches of a row that a quantiser reads alike
SCALES = (2.0**-100, 2.0**100)  # of a quantiser: times 2**24 a scale is still a float32
QUANTISED_ACTIVATIONS = ("identity", "relu", "tanh", "hardtanh")
WHOLE = ("quantised", "quantised_conv", "quantised_gru")  # kinds of layers that give levels from levels
FINE = 16  # steps of a gate's sum to one step of the table it is looked up in
WIDEST_GATE = 2**15 - 1  # what one half of a gate's sum is clipped to
HELD = 128  # steps of a memory to one level: it has 15 bits, and is read as its nearest level


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


def gate_levels() -> Floats:
    """[255] what a gate gives for -127..127: sigmoid(q / 16) in steps of 1/256, from 0 to 256, so that a memory can be kept
    whole. From the table of `tanh_levels` t alone: 128 + t + (t >= 64) - (t <= -64), which is 128 + round(t 128 / 127).

    >>> gate_levels()[[0, 126, 127, 128, 254]].tolist()
    [0.0, 124.0, 128.0, 132.0, 256.0]
    """
    t = tanh_levels()
    return (128 + t + (t >= 64) - (t <= -64)).astype(np.float32)


def levels_problem(layers: Sequence[_Named]) -> str:
    """What is out of order: whole numbers come from `Quantise`, go through `Quantised` and leave by `Readout` only."""
    whole = False
    for layer in layers:
        if whole != (layer.kind in (*WHOLE, "readout")):
            return (
                f"a {layer.kind} layer reads the levels of a quantised one: only quantised layers and a readout can"
                if whole
                else f"a {layer.kind} layer without a quantise layer in front of it"
            )
        whole = layer.kind in ("quantise", *WHOLE)
    return "a quantised policy without a readout layer at its end" if whole else ""


@dataclass(frozen=True)
class Quantise:
    """q = clip(round((x - offset) * scale), -127, 127); halves go up, numbers that are none become 0.

    With v = (x - offset) * scale in float32, clipped, q = floor(v + 0.5) without a rounding of the sum: in float64 here
    and in ONNX, from a fixed-point number of 24 fractional bits in C.
    """

    offset: Floats  # [n]
    scale: Floats  # [n] quantised steps per unit
    times: int = (
        1  # the row is so many stretches of n numbers, all read alike: the pixels of an image, the steps of a history
    )
    kind: ClassVar[str] = "quantise"

    @property
    def inputs(self) -> int:
        return int(self.offset.size) * self.times

    @property
    def outputs(self) -> int:
        return self.inputs

    @property
    def multiply_adds(self) -> int:
        return self.inputs

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        return {"offset": (self.offset.size,), "scale": (self.offset.size,)}

    def problem(self) -> str:
        if not 1 <= self.times <= MOST_TIMES:
            return f"a quantiser of {self.times} stretches"
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
        return _levels_out_problem(self.activation, self.multiplier, self.shift) or _sums_problem(
            self.weight, self.bias, self.width
        )


@dataclass(frozen=True)
class QuantisedConv:
    """A convolution in whole numbers, without padding: each window is a row of kh kw in levels for a `Quantised` layer.

    Cross-correlation as `Conv`; multiplier and shift are of output channels. Gives height x width x channels.
    """

    weight: Floats  # [kernel height, kernel width, in channels, out channels] whole numbers within the width's range
    bias: Floats  # [out channels] whole numbers
    multiplier: Floats  # [out channels] whole numbers 1..255
    shift: Floats  # [out channels] whole numbers 1..31
    size: tuple[int, int]  # height, width of the input
    stride: tuple[int, int] = (1, 1)
    activation: str = "relu"
    layout: str = "hwc"  # of the flat input, or chw; the output is always hwc
    width: str = "int8"  # of the stored weights: int8, int4, int2 or ternary
    kind: ClassVar[str] = "quantised_conv"

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return windows(self.size, self.window, self.stride)

    @property
    def matrix(self) -> Floats:
        """[kh kw in, out] the weights that a window, read row by row with its channels last, is multiplied with."""
        return self.weight.reshape(-1, self.weight.shape[3])

    @property
    def inputs(self) -> int:
        return int(self.size[0] * self.size[1] * self.weight.shape[2])

    @property
    def outputs(self) -> int:
        return int(math.prod(self.out_size) * self.weight.shape[3])

    @property
    def multiply_adds(self) -> int:
        return int(math.prod(self.out_size) * self.weight.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        out = self.weight.shape[3:]
        return {"weight": self.weight.shape, "bias": out, "multiplier": out, "shift": out}

    def problem(self) -> str:
        if self.weight.ndim != 4:
            return f"a convolution's weight has shape {self.weight.shape}, not [kh, kw, in, out]"
        if self.layout not in ("hwc", "chw"):
            return f"unknown layout {self.layout!r}"
        return (
            window_problem(self.size, self.window, self.stride)
            or _levels_out_problem(self.activation, self.multiplier, self.shift)
            or _sums_problem(self.matrix, self.bias, self.width)
        )


@dataclass(frozen=True)
class QuantisedGru:
    """A gated recurrent unit in whole numbers; gates reset, update, new stacked along the last axis, as in `Gru`.

    Of each gate j, from the inputs' levels x and the memory's levels (m + 64) >> 7:
        a = requantised(bias_x + sum x weight_x), b = requantised(bias_h + sum level weight_h), each by its own multiplier
        and shift as in `Quantised`, clipped to +-32767; a step is 1/256 of the reset and update gates, 1/512 of the new one
        r, z = gate_levels[clip((a + b + 8) >> 4, -127, 127)], 0..256
        n = tanh_levels[clip((a + ((r b + 128) >> 8) + 8) >> 4, -127, 127)]
        m' = (z m + (256 - z) 128 n + 128) >> 8, which gives the level (m' + 64) >> 7
    The memory m is a whole number in -16256..16256, 128 steps to a level: with 8 bits it could not change slowly.
    Every number stays below 2**24.
    """

    weight_x: Floats  # [in, 3H] whole numbers within the width's range
    weight_h: Floats  # [H, 3H]
    bias_x: Floats  # [3H] whole numbers
    bias_h: Floats  # [3H]
    multiplier_x: Floats  # [3H] whole numbers 1..255
    multiplier_h: Floats  # [3H]
    shift_x: Floats  # [3H] whole numbers 1..31
    shift_h: Floats  # [3H]
    width: str = "int8"  # of the stored weights: int8, int4, int2 or ternary
    kind: ClassVar[str] = "quantised_gru"
    memory: ClassVar[int] = 1  # vectors of H numbers carried from step to step

    @property
    def size(self) -> int:
        """H."""
        return int(self.weight_h.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight_x.shape[0])

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def multiply_adds(self) -> int:
        return int(self.weight_x.size + self.weight_h.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        gates = (3 * self.size,)
        vectors = ("bias_x", "bias_h", "multiplier_x", "multiplier_h", "shift_x", "shift_h")
        return {"weight_x": (self.inputs, *gates), "weight_h": (self.size, *gates)} | dict.fromkeys(vectors, gates)

    def problem(self) -> str:
        for half in "xh":
            weight, bias = getattr(self, f"weight_{half}"), getattr(self, f"bias_{half}")
            found = _levels_out_problem("tanh", getattr(self, f"multiplier_{half}"), getattr(self, f"shift_{half}"))
            if problem := found or _sums_problem(weight, bias, self.width):
                return problem
        return ""


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


def _levels_out_problem(activation: str, multiplier: Floats, shift: Floats) -> str:
    """What is wrong with how sums become levels again."""
    if activation not in QUANTISED_ACTIVATIONS:
        return f"a quantised layer with {activation!r}, allowed {', '.join(QUANTISED_ACTIVATIONS)}"
    if not _whole(multiplier, 1, 255) or not _whole(shift, 1, 31):
        return "a quantised layer whose multiplier is not in 1..255 or whose shift is not in 1..31"
    return ""


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
