"""Random policies in whole numbers, and what they say in Python's own integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces as S

from limbeck import seeding, spaces
from limbeck.contracts import Blueprint, Quantise, Quantised, QuantisedConv, QuantisedGru, Readout, Spec, View
from limbeck.contracts.quantised import BITS, LARGEST_SUM, least

WIDTHS = tuple(BITS)
ACTIVATIONS = ("identity", "relu", "tanh", "hardtanh")


def quantise(rng: np.random.Generator, size: int, times: int = 1) -> Quantise:
    """Ranges of `size` numbers; those that `times` stretches of a row share lie about 0, where few inputs saturate."""
    spread, least_scale = (1.0, 5) if times == 1 else (0.25, 30)
    offset, scale = rng.normal(size=size) * spread, rng.uniform(least_scale, 60, size)
    return Quantise(offset.astype(np.float32), scale.astype(np.float32), times)


def drawn(rng: np.random.Generator, n_in: int, n_out: int, width: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the whole range and biases of the size of a sum."""
    weight = rng.integers(least(width), BITS[width] + 1, (n_in, n_out)).astype(np.float32)
    size = math.sqrt(n_in) * 60 * BITS[width]
    return weight, np.round(rng.normal(size=n_out) * size).astype(np.float32)


def dense(rng: np.random.Generator, n_in: int, n_out: int, activation: str, width: str) -> Quantised:
    """A layer whose levels are spread: one output's shift is drawn anew, so that some saturate and some vanish."""
    weight, bias = drawn(rng, n_in, n_out, width)
    multiplier = rng.integers(1, 256, n_out)
    spread = np.abs(weight).sum(0) * 40 + 1
    shift = np.clip(np.round(np.log2(spread * multiplier / 60)), 1, 31)
    shift[0] = rng.integers(1, 32)
    return Quantised(weight, bias, multiplier.astype(np.float32), shift.astype(np.float32), activation, width)


def readout(rng: np.random.Generator, n_in: int, n_out: int, width: str) -> Readout:
    weight, bias = drawn(rng, n_in, n_out, width)
    return Readout(weight, bias, (rng.normal(size=n_out) / 1000).astype(np.float32), width)


def conv(
    rng: np.random.Generator,
    size: tuple[int, int],
    kernel: tuple[int, int, int, int],
    activation: str,
    width: str,
    **options: Any,
) -> QuantisedConv:
    """kernel: height, width, channels in and out; many levels differ from picture to picture."""
    weight, bias = drawn(rng, math.prod(kernel[:3]), kernel[3], width)
    multiplier, shift = _spread(rng, weight, 30, 60)
    shift[0] = rng.integers(1, 32)
    return QuantisedConv(
        weight.reshape(kernel), np.round(bias / 3), multiplier, shift, size,
        activation=activation, width=width, **options,
    )  # fmt: skip


def _spread(rng: np.random.Generator, weight: np.ndarray, level: float, wanted: float) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and shifts with which sums of levels of the size `level` become numbers of the size `wanted`."""
    multiplier = rng.integers(1, 256, weight.shape[1])
    size = (np.sqrt((weight**2).sum(0)) * level + 1) * multiplier
    return multiplier.astype(np.float32), np.clip(np.round(np.log2(size / wanted)), 1, 31).astype(np.float32)


def gru(rng: np.random.Generator, n_in: int, size: int, width: str) -> QuantisedGru:
    """A memory whose gates are spread over their tables: of each half one is drawn anew."""
    halves = {}
    for half, count in (("x", n_in), ("h", size)):
        weight, bias = drawn(rng, count, 3 * size, width)
        multiplier, shift = _spread(rng, weight, 60, 1000)
        shift[rng.integers(3 * size)] = rng.integers(1, 32)
        halves |= {f"weight_{half}": weight, f"bias_{half}": np.round(bias / 2)}
        halves |= {f"multiplier_{half}": multiplier, f"shift_{half}": shift}
    return QuantisedGru(**halves, width=width)


def policy(
    sizes: Sequence[int], activation: str = "relu", width: str = "int8", *, seed: int = 0, view: View = View()
) -> Blueprint:
    """sizes: observation, hidden layers, actions."""
    rng = seeding.generator(seed, "train", 91)
    first = sizes[0] * view.history
    inner = (first, *sizes[1:-1])
    hidden = [dense(rng, n_in, n_out, activation, width) for n_in, n_out in pairwise(inner)]
    layers = (quantise(rng, first), *hidden, readout(rng, inner[-1], sizes[-1], width))
    spec = Spec(S.Box(-3, 3, (sizes[0],), np.float32), S.Discrete(sizes[-1]), "a task")
    return Blueprint(spec, spaces.head_for(spec.action_space), layers, view)


def extreme() -> Blueprint:
    """Sums as large as they may be, with the largest multipliers and the least and largest shifts."""
    size = 250
    most = np.full((size, 6), 127, np.float32) * np.float32([1, -1, 1, -1, 1, -1])
    rest = np.float32(LARGEST_SUM - size * 127 * 127)
    bias = np.float32([1, -1, 1, -1, -1, 1]) * rest
    hidden = Quantised(most, bias, np.full(6, 255, np.float32), np.float32([1, 1, 31, 31, 23, 23]), "identity")
    spec = Spec(S.Box(-3, 3, (size,), np.float32), S.Discrete(4), "a task")
    ends = (
        Quantise(np.zeros(size, np.float32), np.full(size, 127, np.float32)),
        readout(np.random.default_rng(0), 6, 4, "int8"),
    )
    return Blueprint(spec, spaces.head_for(spec.action_space), (ends[0], hidden, ends[1]))


def observations(size: int, rows: int, seed: int = 0) -> np.ndarray:
    """[rows, size] numbers as a policy meets them, borders of levels and huge ones included."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows, size)).astype(np.float32)
    obs[rows // 4 : rows // 2] = np.round(obs[rows // 4 : rows // 2] * 8) / 8
    obs[-6], obs[-5], obs[-4], obs[-3], obs[-2], obs[-1] = 1e30, -1e30, 3.4e38, -1e-42, 0.0, 1.0
    return obs


# ---------------------------------------------------------------- in Python's integers


def said(blueprint: Blueprint, row: np.ndarray, memory: dict[int, list[int]] | None = None) -> list[float]:
    """What the policy says of one row of finite numbers, one integer after the other; `memory` of layers is gone on with."""
    x: list[int] = []
    held = {} if memory is None else memory
    for i, layer in enumerate(blueprint.layers):
        match layer:
            case Quantise():
                ranges = list(zip(layer.offset, layer.scale, strict=True)) * layer.times
                x = [_level(v, o, s) for v, (o, s) in zip(row, ranges, strict=True)]
            case QuantisedConv():
                x = convolved(layer, x)
            case QuantisedGru():
                held[i] = remembered(layer, x, held.get(i, [0] * layer.size))
                x = [(m + 64) >> 7 for m in held[i]]
            case Quantised():
                x = [_answer(layer, j, _sum(layer, x, j)) for j in range(layer.outputs)]
            case Readout():
                sums = [_sum(layer, x, j) for j in range(layer.outputs)]
                return [float(np.float32(s) * scale) for s, scale in zip(sums, layer.scale, strict=True)]
    raise AssertionError("no readout")


def _level(value: np.float32, offset: np.float32, scale: np.float32) -> int:
    with np.errstate(over="ignore"):
        v = (value - offset) * scale
    if abs(v) > 127:
        return 127 if v > 0 else -127
    return math.floor(Fraction(float(v)) + Fraction(1, 2))


def _sum(layer: Quantised | Readout, x: list[int], j: int) -> int:
    return int(layer.bias[j]) + sum(v * int(w) for v, w in zip(x, layer.weight[:, j], strict=True))


def _rescaled(total: int, multiplier: float, shift: float) -> int:
    return (total * int(multiplier) + 2 ** (int(shift) - 1)) >> int(shift)


def _answer(layer: Quantised | QuantisedConv, j: int, total: int) -> int:
    r = _rescaled(total, layer.multiplier[j], layer.shift[j])
    r = min(max(r, 0 if layer.activation == "relu" else -127), 127)
    return _tanh(r) if layer.activation == "tanh" else r


def convolved(layer: QuantisedConv, x: list[int]) -> list[int]:
    """Place by place: height x width x channels out of the levels of a picture."""
    (height, width), (down, across), (kh, kw, channels, out) = layer.size, layer.stride, layer.weight.shape
    made = []
    for i in range(0, height - kh + 1, down):
        for j in range(0, width - kw + 1, across):
            for k in range(out):
                total = int(layer.bias[k])
                for a in range(kh):
                    for b in range(kw):
                        for c in range(channels):
                            at = ((i + a) * width + j + b) * channels + c
                            if layer.layout == "chw":
                                at = (c * height + i + a) * width + j + b
                            total += x[at] * int(layer.weight[a, b, c, k])
                made.append(_answer(layer, k, total))
    return made


def remembered(layer: QuantisedGru, x: list[int], memory: list[int]) -> list[int]:
    """The memory after a step."""
    n = layer.size
    level = [(m + 64) >> 7 for m in memory]
    a = [_gate(layer, "x", j, x) for j in range(3 * n)]
    b = [_gate(layer, "h", j, level) for j in range(3 * n)]
    after = []
    for j in range(n):
        r, z = (_sigmoid(_clipped((a[g + j] + b[g + j] + 8) >> 4)) for g in (0, n))
        new = _tanh(_clipped((a[2 * n + j] + ((r * b[2 * n + j] + 128) >> 8) + 8) >> 4))
        after.append((z * memory[j] + (256 - z) * 128 * new + 128) >> 8)
    return after


def _gate(layer: QuantisedGru, half: str, j: int, x: list[int]) -> int:
    named: Mapping[str, np.ndarray] = vars(layer)
    weights = (int(w) for w in named[f"weight_{half}"][:, j])
    total = int(named[f"bias_{half}"][j]) + sum(v * w for v, w in zip(x, weights, strict=True))
    found = _rescaled(total, named[f"multiplier_{half}"][j], named[f"shift_{half}"][j])
    return min(max(found, -32767), 32767)


def _clipped(level: int) -> int:
    return min(max(level, -127), 127)


def _tanh(level: int) -> int:
    return round(127 * math.tanh(level / 32))


def _sigmoid(level: int) -> int:
    """In steps of 1/256, from the numbers of `_tanh` alone."""
    return 128 + round(Fraction(_tanh(level) * 128, 127))
