"""What students in whole numbers are trained with: roundings that let gradients through, and layers for K members at once.

Rows are float32 that hold whole numbers below 2**24, so sums are exact in any order; what is larger on the way goes
through float64. The equations stand at `contracts.quantised`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from limbeck.contracts import BITS, LEVELS, TANH_STEPS
from limbeck.contracts.quantised import FINE, HELD, LARGEST_SUM, WIDEST_GATE, gate_levels, least, tanh_levels
from limbeck.students.convolution import Convolution

OF_WEIGHTS, OF_BIASES = 0.5 * LARGEST_SUM / LEVELS, float(LARGEST_SUM // 10)  # of a sum, the rest is for rounding
THRESHOLD = 0.7  # of a ternary weight, times mean |w|
GATE, NEW = 16 * FINE, TANH_STEPS * FINE  # steps of a gate's sum to 1: of reset and update, of the new value
WHOLE_MEMORY = LEVELS * HELD  # what a memory of 1 is
AT_ONCE = 1 << 20  # numbers of windows side by side


@dataclass(frozen=True)
class Whole:
    """A layer of K members in whole numbers, differentiable."""

    weight: torch.Tensor  # [K, in, out]; of a convolution `in` is one window
    bias: torch.Tensor  # [K, 1, out]
    step: torch.Tensor  # [K, 1, out] what one step of its sum is worth
    ratio: torch.Tensor  # [K, 1, out] multiplier / 2**shift; the last layer has none
    shift: torch.Tensor  # [K, 1, out]
    unit: torch.Tensor  # [K, 1, 1] what one step behind its activation is worth
    held: Whole | None = None  # of a gated memory: its weights on what it remembers

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """[K, N, out] of levels [K or 1, N, in]."""
        return torch.baddbmm(self.bias, x.expand(len(self.weight), -1, -1), self.weight)


# ---------------------------------------------------------------- roundings


class _Through(torch.autograd.Function):
    """Takes the place of x with the gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[0], None


def through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, and gradients that go straight through to x."""
    found: torch.Tensor = _Through.apply(x, value)  # type: ignore[no-untyped-call]  # torch states no types here
    return found


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest whole numbers, halves up, passing gradients straight through.

    >>> rounded(torch.tensor([-0.5, 0.4, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    """
    return through(x, x.detach().double().add_(0.5).floor_().to(x.dtype))


def rescaled(total: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """The whole numbers next to sums times multiplier / 2**shift, halves up: products of 30 bits, which float32 would round.

    >>> rescaled(torch.tensor([133043.0]), torch.tensor([133 / 2.0**18])).tolist(), 133043 * 133 / 2**18 < 67.5
    ([67.0], True)
    """
    exact = total.detach().double().mul_(ratio.detach().double())
    return through(total * ratio, exact.add_(0.5).floor_().to(total.dtype))


# ---------------------------------------------------------------- weights


def whole(
    width: str, weight: torch.Tensor, bias: torch.Tensor, unit: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> Whole:
    """Real weights [K, in, out] on steps worth `unit`, for a layer whose steps are worth `before` and `after` its activation."""
    real = weight.detach()
    size, mean = real.abs(), real.abs().mean(1, keepdim=True)
    kept = size > THRESHOLD * mean  # of ternary weights
    if width == "ternary":
        own = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
    else:
        own = mean if width == "int2" else size.amax(1, keepdim=True) / BITS[width]
    # no step so small that a sum, its bias or its multiplier has no room
    room = torch.maximum(size.sum(1, keepdim=True) / OF_WEIGHTS, bias.detach().abs() / (unit.detach() * OF_BIASES))
    own = torch.maximum(own, torch.maximum(room, 2.0**-20 * before.detach() / unit.detach()))
    near = torch.floor(real / own + 0.5).clamp(least(width), BITS[width])
    numbers = through(weight / own, torch.sign(real) * kept if width == "ternary" else near)
    worth = unit * own
    ratio, shift = _ratio(worth / before)
    return Whole(numbers, rounded(bias / worth).clamp(-OF_BIASES, OF_BIASES), worth, ratio, shift, after)


def _ratio(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """multiplier / 2**shift next to `wanted`, with a multiplier of 8 bits, and the shift."""
    exact = wanted.detach()
    shift = torch.floor(torch.log2(255.0 / exact)).clamp(1, 31)
    multiplier = torch.floor(exact * 2.0**shift + 0.5).clamp(1, 255)
    return through(wanted, multiplier / 2.0**shift), shift


def gate_steps(like: torch.Tensor, size: int) -> torch.Tensor:
    """[1, 1, 3H] what one step of a gate's sum is worth: reset, update, new."""
    return torch.cat([like.new_full((2 * size,), 1 / GATE), like.new_full((size,), 1 / NEW)])[None, None]


# ---------------------------------------------------------------- convolutions


def convolved(x: torch.Tensor, weight: torch.Tensor, layer: Convolution) -> torch.Tensor:
    """[K, N places, filters] sums of windows: pictures [K or 1, N, height width channels], weight [K, kh kw channels, filters].

    One call for all members where that is exact on this machine (some libraries convolve small kernels by Winograd's
    or Fourier's products, which round), else a matrix product over the windows: slower, the same whole numbers.
    """
    exact = _is_exact(layer, len(x), len(weight), x.shape[1])
    return (convolved_at_once if exact else _by_windows)(x, weight, layer)


def convolved_at_once(x: torch.Tensor, weight: torch.Tensor, layer: Convolution) -> torch.Tensor:
    """The same of real numbers, rounded as it may be."""
    shared, count, members = len(x), x.shape[1], len(weight)
    pictures = x.reshape(shared, count, *layer.size, layer.channels).permute(1, 0, 4, 2, 3)
    kernels = weight.reshape(members, *layer.shape).permute(0, 4, 3, 1, 2).reshape(-1, layer.channels, *layer.kernel)
    maps = functional.conv2d(
        pictures.reshape(count, -1, *layer.size).contiguous(), kernels, None, layer.stride, groups=shared
    )
    return maps.reshape(count, members, layer.filters, -1).permute(1, 0, 3, 2).reshape(members, -1, layer.filters)


def _by_windows(x: torch.Tensor, weight: torch.Tensor, layer: Convolution) -> torch.Tensor:
    (down, across), (high, wide) = layer.stride, layer.kernel
    size = math.prod(layer.out_size) * weight.shape[1] * len(x)
    found = []
    for some in torch.split(x, max(1, AT_ONCE // size), dim=1):
        pictures = some.reshape(len(x), some.shape[1], *layer.size, layer.channels)
        seen = pictures.unfold(2, high, down).unfold(3, wide, across).permute(0, 1, 2, 3, 5, 6, 4)
        found.append(torch.matmul(seen.reshape(len(x), -1, weight.shape[1]), weight))
    return torch.cat(found, dim=1)


@functools.cache
def _is_exact(layer: Convolution, shared: int, members: int, count: int) -> bool:
    """Tried out once for each number of pictures, on whole numbers of the whole range: which algorithm a library takes
    depends on shapes, the number of pictures among them, and not on the numbers."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-LEVELS, LEVELS + 1, shape, np.int8).astype(np.float32))

    x = drawn(shared, count, math.prod(layer.size) * layer.channels)
    room = LARGEST_SUM // (LEVELS * LEVELS)  # windows of so many numbers cannot leave a sum's bits
    weight = drawn(members, math.prod(layer.shape[:3]), layer.filters)
    weight[:, room:] = 0
    with torch.no_grad():
        return torch.equal(convolved_at_once(x, weight, layer), _by_windows(x, weight, layer))


# ---------------------------------------------------------------- memory


def remembered(layer: Whole, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Levels [K, T B, H] of a gated memory, from levels [K or 1, T B, in] and where episodes begin [T, B].

    The gradient of a step is that of the gated unit in real numbers, at the same weights, inputs and memory.
    """
    held = layer.held
    assert held is not None
    time, batch = first.shape
    members, size = len(layer.weight), held.weight.shape[1]
    from_x = _gates(layer.sums(x), layer.ratio).reshape(members, time, batch, -1)
    memory = from_x.new_zeros(members, batch, size)
    level, given = memory, []
    for t, now in enumerate(from_x.unbind(1)):
        stays = (~first[t])[None, :, None]
        memory, level = memory * stays, level * stays
        memory = _step(now, _gates(held.sums(level), held.ratio), memory)
        level = through(memory / HELD, torch.floor((memory.detach() + HELD // 2) / HELD))
        given.append(level)
    return torch.stack(given, dim=1).reshape(members, time * batch, size)


def _gates(total: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    return rescaled(total, ratio).clamp(-WIDEST_GATE, WIDEST_GATE)


def _step(from_x: torch.Tensor, from_h: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """The next memory [K, B, H] from both halves of all gates [K, B, 3H]."""
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    update = torch.sigmoid((xz + hz) / GATE)
    new = torch.tanh((xn + torch.sigmoid((xr + hr) / GATE) * hn) / NEW)
    real = update * memory + (1 - update) * (WHOLE_MEMORY * new)
    with torch.no_grad():
        gates, values = _tables()
        r, z = gates[_entry(xr + hr)], gates[_entry(xz + hz)]
        n = values[_entry(xn + torch.floor((r * hn + 128) / 256))]
        exact = torch.floor((z * memory + (256 - z) * HELD * n + 128) / 256)
    return through(real, exact)


def _entry(fine: torch.Tensor) -> torch.Tensor:
    """Where a gate's sum lies in its table of 255 numbers."""
    return torch.floor((fine + FINE // 2) / FINE).clamp(-LEVELS, LEVELS).long() + LEVELS


@functools.cache
def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(gate_levels()), torch.from_numpy(tanh_levels())
