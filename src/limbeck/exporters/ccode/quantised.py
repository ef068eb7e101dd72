"""Layers in whole numbers as C: bytes in, bytes out, sums of 32 bits, no library and, but for the two ends, no float.

Requirements that shaped it: processors without floats and without sign-extending loads at fixed offsets (Cortex-M0) read
unsigned bytes fastest, so a level q is kept as q + 128 and a weight w as w + Z with Z = 128, 8 or 2 for 8, 4 or 2 bits;
what that adds to a sum is in part known here (it is in the stored bias), in part Z times the sum of the inputs. Two
outputs are summed at once, so that an input is loaded for both. No sum overflows and no negative number is shifted:
every step is defined by C99 and the same everywhere.
"""

from __future__ import annotations

import numpy as np

from limbeck import packing
from limbeck.contracts import LEVELS, Array, Layer, Quantise, Quantised, Readout
from limbeck.contracts.quantised import storage_bits, tanh_levels
from limbeck.exporters.ccode.body import Body, Row

ZERO = 128  # a level q is the byte q + 128
FRACTION = 24  # bits behind the point of a quantised observation before it is rounded

_QUANTISE = """
/* Bytes 128 + round(clip((x - offset) scale, -127, 127)), halves go up. The stored scales are 2^24 times those, an exact
   change, so v is a fixed-point number with 24 bits behind the point: from 1/2 on a float is a multiple of 2^-24 and
   loses nothing in (int32_t)v, and below 1/2 it gives 0 either way. No product is followed by an addition of floats,
   so a fused multiply-add cannot change a bit. Not a number gives the level 0. */
static void @p_quantise(const float *offset, const float *scale, const float *x, uint8_t *y, int n)
{
    const float limit = 2130706432.0f; /* 127 * 2^24 */
    int i;
    for (i = 0; i < n; i++) {
        const float v = (x[i] - offset[i]) * scale[i];
        int32_t k;
        if (v > -limit && v < limit)
            k = (int32_t)v;
        else
            k = v >= limit ? INT32_C(2130706432) : v <= -limit ? -INT32_C(2130706432) : 0;
        y[i] = (uint8_t)(((uint32_t)k + UINT32_C(0x80800000)) >> 24);
    }
}
"""

_TOTAL = """
/* the sum of n bytes */
static int32_t @p_total(const uint8_t *x, unsigned n)
{
    int32_t sum = 0;
    while (n-- > 0)
        sum += *x++;
    return sum;
}
"""

_DOTS = {  # of two rows of n weights with n levels, as they are stored: positive; n <= 2^15 keeps them within 31 bits
    8: """
static inline void @p_dots8(const uint8_t *w, const uint8_t *v, const uint8_t *x, unsigned n, int32_t *sums)
{
    const uint8_t *const whole = x + (n & ~3u), *const end = x + n;
    int32_t s = 0, t = 0;
    for (; x < whole; x += 4, w += 4, v += 4) {
        const int32_t a = x[0], b = x[1], c = x[2], d = x[3];
        s += w[0] * a;
        t += v[0] * a;
        s += w[1] * b;
        t += v[1] * b;
        s += w[2] * c;
        t += v[2] * c;
        s += w[3] * d;
        t += v[3] * d;
    }
    for (; x < end; x++) {
        s += *w++ * (int32_t)*x;
        t += *v++ * (int32_t)*x;
    }
    sums[0] = s;
    sums[1] = t;
}
""",
    4: """
static inline void @p_dots4(const uint8_t *w, const uint8_t *v, const uint8_t *x, unsigned n, int32_t *sums)
{
    const uint8_t *const whole = x + (n & ~1u);
    int32_t s = 0, t = 0;
    for (; x < whole; x += 2, w++, v++) {
        const int32_t a = x[0], b = x[1];
        s += (*w & 15) * a;
        t += (*v & 15) * a;
        s += (*w >> 4) * b;
        t += (*v >> 4) * b;
    }
    if (n & 1) {
        s += (*w & 15) * (int32_t)*x;
        t += (*v & 15) * (int32_t)*x;
    }
    sums[0] = s;
    sums[1] = t;
}
""",
    2: """
static inline void @p_dots2(const uint8_t *w, const uint8_t *v, const uint8_t *x, unsigned n, int32_t *sums)
{
    const uint8_t *const whole = x + (n & ~3u), *const end = x + n;
    int32_t s = 0, t = 0;
    for (; x < whole; x += 4, w++, v++) {
        const int32_t a = x[0], b = x[1], c = x[2], d = x[3];
        s += (*w & 3) * a;
        t += (*v & 3) * a;
        s += (*w >> 2 & 3) * b;
        t += (*v >> 2 & 3) * b;
        s += (*w >> 4 & 3) * c;
        t += (*v >> 4 & 3) * c;
        s += (*w >> 6) * d;
        t += (*v >> 6) * d;
    }
    for (n = 0; x < end; x++, n += 2) {
        s += (*w >> n & 3) * (int32_t)*x;
        t += (*v >> n & 3) * (int32_t)*x;
    }
    sums[0] = s;
    sums[1] = t;
}
""",
}

_LEVEL = """
/* The byte 128 + clip((sum m + 2^(k - 1)) >> k, low, 127) or its entry in a table; m and k - 1 lie in `step`. What is
   shifted is raised by 2^31 first, which keeps it positive, and lowered by 2^31 >> k afterwards; to shift by k - 1, add
   1 and shift by 1 rounds the same way. */
static inline uint8_t @p_level(int32_t sum, const uint8_t *step, int32_t low, const uint8_t *table)
{
    const uint32_t raised = ((uint32_t)sum * step[0] + UINT32_C(0x80000000)) >> step[1];
    int32_t r = (int32_t)((raised + 1) >> 1) - (int32_t)(UINT32_C(0x40000000) >> step[1]);
    r = r < low ? low : r > 127 ? 127 : r;
    return table ? table[r + 127] : (uint8_t)(r + 128);
}
"""

_LEVELS = """
static void @p_levels#(const uint8_t *w, const int32_t *bias, const uint8_t *step, const uint8_t *x, uint8_t *y,
    unsigned n_in, unsigned n_out, int32_t low, const uint8_t *table)
{
    const int32_t shared = @Z * @p_total(x, n_in);
    const unsigned stride = @S;
    int32_t sums[2];
    for (;; w += 2 * stride, bias += 2, step += 4, y += 2, n_out -= 2) { /* the last row of an odd number is read twice */
        @p_dots#(w, n_out > 1 ? w + stride : w, x, n_in, sums);
        y[0] = @p_level(sums[0] - shared + bias[0], step, low, table);
        if (n_out > 1)
            y[1] = @p_level(sums[1] - shared + bias[1], step + 2, low, table);
        if (n_out <= 2)
            break;
    }
}
"""

_READOUT = """
/* real numbers, the sums times their scales */
static void @p_readout#(const uint8_t *w, const int32_t *bias, const float *scale, const uint8_t *x, float *y,
    unsigned n_in, unsigned n_out)
{
    const int32_t shared = @Z * @p_total(x, n_in);
    const unsigned stride = @S;
    int32_t sums[2];
    for (;; w += 2 * stride, bias += 2, scale += 2, y += 2, n_out -= 2) {
        @p_dots#(w, n_out > 1 ? w + stride : w, x, n_in, sums);
        y[0] = (float)(sums[0] - shared + bias[0]) * scale[0];
        if (n_out > 1)
            y[1] = (float)(sums[1] - shared + bias[1]) * scale[1];
        if (n_out <= 2)
            break;
    }
}
"""


def held(layer: Layer) -> int:
    """The floats of a vector that holds what a layer gives; levels are bytes, and bytes may lie in any object."""
    return -(-layer.outputs // 4) if isinstance(layer, Quantise | Quantised) else layer.outputs


def write(name: str, layer: Quantise | Quantised | Readout, x: Row, y: Row, body: Body) -> None:
    """The statement of one layer."""
    if isinstance(layer, Quantise):
        _need(body, "quantise", _QUANTISE)
        scale = (layer.scale.astype(np.float64) * 2**FRACTION).astype(np.float32)
        stored = f"{body.constant(f'offset_{name}', layer.offset)}, {body.constant(f'scale_{name}', scale)}"
        body.add(f"@p_quantise({stored}, {x.at}, (uint8_t *){y.at}, {layer.outputs});")
        return
    bits, sizes = storage_bits(layer.width), f"{layer.inputs}, {layer.outputs}"
    _need(body, "total", _TOTAL)
    _need(body, f"dots{bits}", _DOTS[bits])
    weight = body.constant(f"weight_{name}", _rows(layer.weight, bits), "uint8_t")
    raised = layer.bias.astype(np.int64) - ZERO * layer.weight.astype(np.int64).sum(0)
    bias = body.constant(f"bias_{name}", raised, "int32_t")
    if isinstance(layer, Readout):
        _need(body, f"readout{bits}", _made_for(bits, _READOUT))
        scale = body.constant(f"scale_{name}", layer.scale)
        body.add(f"@p_readout{bits}({weight}, {bias}, {scale}, (const uint8_t *){x.at}, {y.at}, {sizes});")
        return
    _need(body, "level", _LEVEL)
    _need(body, f"levels{bits}", _made_for(bits, _LEVELS))
    steps = body.constant(f"step_{name}", np.stack([layer.multiplier, layer.shift - 1], axis=1), "uint8_t")
    low = 0 if layer.activation == "relu" else -LEVELS
    read, written = f"(const uint8_t *){x.at}", f"(uint8_t *){y.at}"
    table = _table(body) if layer.activation == "tanh" else "0"
    body.add(f"@p_levels{bits}({weight}, {bias}, {steps}, {read}, {written}, {sizes}, {low}, {table});")


def _need(body: Body, name: str, text: str) -> None:
    """Write a routine where it is used first."""
    if name not in body.used:
        body.used.add(name)
        body.functions.append(text)


def _made_for(bits: int, text: str) -> str:
    stride = {8: "n_in", 4: "(n_in + 1) / 2", 2: "(n_in + 3) / 4"}[bits]
    return text.replace("#", str(bits)).replace("@Z", str(_zero(bits))).replace("@S", stride)


def _table(body: Body) -> str:
    """The tanh of every level, written once."""
    if "tanh_levels" not in body.used:
        body.used.add("tanh_levels")
        body.constant("tanh_levels", tanh_levels() + ZERO, "uint8_t")
    return "@p_tanh_levels"


def _rows(weight: Array, bits: int) -> Array:
    """Weights [in, out] as bytes, output by output, each beginning with a byte of its own."""
    return np.concatenate([packing.pack(row + _zero(bits), bits) for row in weight.T])


def _zero(bits: int) -> int:
    """What is added to a weight of `bits` bits to store it as a positive number."""
    return 1 << (bits - 1)
