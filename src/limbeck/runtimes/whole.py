"""Layers in whole numbers in numpy: the reference of every other runtime. The equations stand at their contracts.

Rows are float32 that hold whole numbers below 2**24 and products are exact in any order; what is larger on the way goes
through float64, which is exact as well.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import LEVELS, Array, Floats, Quantise, Quantised, QuantisedConv, QuantisedGru, Readout
from limbeck.contracts.quantised import FINE, HELD, WIDEST_GATE, gate_levels, tanh_levels
from limbeck.runtimes.pictures import patches


def quantise(layer: Quantise, x: Floats) -> Floats:
    """Levels of real numbers [B, inputs]."""
    offset, scale = np.tile(layer.offset, layer.times), np.tile(layer.scale, layer.times)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite observations are clipped
        v = (x - offset) * scale
    v = np.clip(np.where(np.isnan(v), np.float32(0), v), -LEVELS, LEVELS)
    return np.floor(v.astype(np.float64) + 0.5).astype(np.float32)


def quantised(layer: Quantised, x: Floats) -> Floats:
    """Levels [B, out] of levels [B, in]."""
    return _activated(layer.activation, rescaled(x @ layer.weight + layer.bias, layer.multiplier, layer.shift))


def quantised_conv(layer: QuantisedConv, x: Floats) -> Floats:
    """Levels [B, height width channels] of levels [B, inputs]."""
    *kernel, out = layer.weight.shape
    total = patches(x, layer.size, kernel, layer.stride, layer.layout) @ layer.weight.reshape(-1, out) + layer.bias
    return _activated(layer.activation, rescaled(total, layer.multiplier, layer.shift)).reshape(len(x), -1)


def readout(layer: Readout, x: Floats) -> Floats:
    """Real numbers [B, out] of levels [B, in]."""
    return (x @ layer.weight + layer.bias) * layer.scale


def quantised_gru_step(layer: QuantisedGru, x: Floats, memory: Floats) -> Floats:
    """The next memory [B, H] for levels [B, in] and the memory before."""
    sum_x = x @ layer.weight_x + layer.bias_x
    sum_h = nearest_level(memory) @ layer.weight_h + layer.bias_h
    from_x = np.clip(rescaled(sum_x, layer.multiplier_x, layer.shift_x), -WIDEST_GATE, WIDEST_GATE)
    from_h = np.clip(rescaled(sum_h, layer.multiplier_h, layer.shift_h), -WIDEST_GATE, WIDEST_GATE)
    (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
    reset, update = gate_levels()[_entry(xr + hr)], gate_levels()[_entry(xz + hz)]
    new = tanh_levels()[_entry(xn + np.floor((reset * hn + 128) / 256))]
    return np.floor((update * memory + (256 - update) * HELD * new + 128) / 256).astype(np.float32)


def nearest_level(memory: Floats) -> Floats:
    """The levels next to a memory, halves up."""
    return np.floor((memory + HELD // 2) / HELD)


def rescaled(total: Floats, multiplier: Floats, shift: Floats) -> Floats:
    """floor((sum m + 2**(k - 1)) / 2**k) = floor(sum m / 2**k + 1/2), without any rounding: |sum m| < 2**30."""
    step = np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int64))
    return np.floor(total.astype(np.float64) * step + 0.5).astype(np.float32)


def _activated(activation: str, r: Floats) -> Floats:
    r = np.clip(r, 0 if activation == "relu" else -LEVELS, LEVELS)
    return tanh_levels()[r.astype(np.int64) + LEVELS] if activation == "tanh" else r


def _entry(fine: Floats) -> Array:
    """Where a gate's sum lies in its table of 255 numbers."""
    return np.clip(np.floor((fine + FINE // 2) / FINE), -LEVELS, LEVELS).astype(np.int64) + LEVELS
