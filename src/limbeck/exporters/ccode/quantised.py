"""Layers in whole numbers as C: bytes in, bytes out, sums of 32 bits, no library and, but for the two ends, no float.

Requirements that shaped it: processors without floats and without sign-extending loads at fixed offsets (Cortex-M0) read
unsigned bytes fastest, so a level q is kept as q + 128 and a weight w as w + Z with Z = 128, 8 or 2 for 8, 4 or 2 bits;
what that adds to a sum is in part known here (it is in the stored bias), in part Z times the sum of the inputs. Two
outputs are summed at once, so that an input is loaded for both; SSE2, NEON and WebAssembly take 16 bytes at a time. No
sum overflows and no negative number is shifted: every step is defined by C99 and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck import packing
from limbeck.contracts import LEVELS, Array, Layer, Quantise, Quantised, QuantisedConv, QuantisedGru, Readout
from limbeck.contracts.quantised import storage_bits, tanh_levels
from limbeck.exporters.ccode.body import Body, Row

ZERO = 128  # a level q is the byte q + 128
FRACTION = 24  # bits behind the point of a quantised observation before it is rounded

_QUANTISE = """
/* Where floats are computed wider (x87), the difference and the product are rounded by storing them. */
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#define @P_ROUNDED volatile float
#else
#define @P_ROUNDED const float
#endif

/* Bytes 128 + round(clip((x - offset) scale, -127, 127)), halves go up. The stored scales are 2^24 times those, an exact
   change, so v is a fixed-point number with 24 bits behind the point: from 1/2 on a float is a multiple of 2^-24 and
   loses nothing in (int32_t)v, and below 1/2 it gives 0 either way. No product is followed by an addition of floats,
   so a fused multiply-add cannot change a bit. Not a number gives the level 0. Every n-th number of all is read alike. */
static void @p_quantise(const float *offset, const float *scale, const float *x, uint8_t *y, int n, int all)
{
    const float limit = 2130706432.0f; /* 127 * 2^24 */
    int i;
    for (i = 0; i < n; i++) {
        const float from = offset[i], by = scale[i];
        int at;
        for (at = i; at < all; at += n) {
            @P_ROUNDED d = x[at] - from;
            @P_ROUNDED v = d * by;
            int32_t k;
            if (v > -limit && v < limit)
                k = (int32_t)v;
            else
                k = v >= limit ? INT32_C(2130706432) : v <= -limit ? -INT32_C(2130706432) : 0;
            y[at] = (uint8_t)(((uint32_t)k + UINT32_C(0x80800000)) >> 24);
        }
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
#if defined(__GNUC__) && (defined(__SSE2__) || defined(__ARM_NEON) || defined(__wasm_simd128__))
typedef uint16_t @p_shorts __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t @p_words __attribute__((vector_size(16)));
#define @P_BYTES(p) (*(const @p_shorts *)(p))
#define @P_ADDED(p) ((p & 65535) + (p >> 16))
#endif

static inline void @p_dots8(const uint8_t *w, const uint8_t *v, const uint8_t *x, unsigned n, int32_t *sums)
{
    const uint8_t *const whole = x + (n & ~3u), *const end = x + n;
    int32_t s = 0, t = 0;
#ifdef @P_BYTES
    const uint8_t *const wide = x + (n & ~15u);
    @p_words u[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (; x < wide; x += 16, w += 16, v += 16) { /* even and odd bytes apart: products of 16 bits, sums of 32 */
        const @p_shorts even = @P_BYTES(x) & 255, odd = @P_BYTES(x) >> 8;
        const @p_words a = (@p_words)((@P_BYTES(w) & 255) * even), b = (@p_words)((@P_BYTES(w) >> 8) * odd);
        const @p_words c = (@p_words)((@P_BYTES(v) & 255) * even), d = (@p_words)((@P_BYTES(v) >> 8) * odd);
        u[0] += @P_ADDED(a) + @P_ADDED(b);
        u[1] += @P_ADDED(c) + @P_ADDED(d);
    }
    s = (int32_t)(u[0][0] + u[0][1] + u[0][2] + u[0][3]);
    t = (int32_t)(u[1][0] + u[1][1] + u[1][2] + u[1][3]);
#endif
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

_RESCALED = """
/* clip((sum m + 2^(k - 1)) >> k, low, high); m and k - 1 lie in `step`. What is shifted is raised by 2^31 first, which
   keeps it positive, and lowered by 2^31 >> k afterwards; to shift by k - 1, add 1 and shift by 1 rounds the same way. */
static inline int32_t @p_rescaled(int32_t sum, const uint8_t *step, int32_t low, int32_t high)
{
    const uint32_t raised = ((uint32_t)sum * step[0] + UINT32_C(0x80000000)) >> step[1];
    const int32_t r = (int32_t)((raised + 1) >> 1) - (int32_t)(UINT32_C(0x40000000) >> step[1]);
    return r < low ? low : r > high ? high : r;
}
"""

_LEVEL = """
/* the byte of a level, or its entry in a table */
static inline uint8_t @p_level(int32_t sum, const uint8_t *step, int32_t low, const uint8_t *table)
{
    const int32_t r = @p_rescaled(sum, step, low, 127);
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


_GATHER = """
/* a window of an image as it is multiplied: planes of rows of `run` bytes, which lie `pitch` and `plane` bytes apart */
static void @p_gather(const uint8_t *x, uint8_t *to, int planes, int rows, int run, int pitch, int plane)
{
    for (; planes > 0; planes--, x += plane) {
        const uint8_t *from = x;
        int row, i;
        for (row = 0; row < rows; row++, from += pitch)
            for (i = 0; i < run; i++)
                *to++ = from[i];
    }
}
"""


def held(layer: Layer) -> int:
    """The floats of a vector that holds what a layer gives; levels are bytes, and bytes may lie in any object."""
    return (
        _floats(layer.outputs)
        if isinstance(layer, Quantise | Quantised | QuantisedConv | QuantisedGru)
        else layer.outputs
    )


def write(name: str, layer: Quantise | Quantised | QuantisedConv | Readout, x: Row, y: Row, body: Body) -> None:
    """The statements of one layer."""
    match layer:
        case Quantise():
            need(body, "quantise", _QUANTISE)
            scale = (layer.scale.astype(np.float64) * 2**FRACTION).astype(np.float32)
            stored = f"{body.constant(f'offset_{name}', layer.offset)}, {body.constant(f'scale_{name}', scale)}"
            sizes = f"{layer.offset.size}, {layer.outputs}"
            body.add(f"@p_quantise({stored}, {x.at}, (uint8_t *){y.at}, {sizes});")
        case Quantised():
            _levels(name, layer, layer.weight, f"(const uint8_t *){x.at}", f"(uint8_t *){y.at}", body)
        case QuantisedConv():
            _convolve(name, layer, x, y, body)
        case Readout():
            bits = storage_bits(layer.width)
            weight, bias = sums(name, ((layer.weight, layer.bias),), bits, body)
            need(body, f"readout{bits}", made_for(bits, _READOUT))
            stored = f"{weight}, {bias}, {body.constant(f'scale_{name}', layer.scale)}"
            body.add(f"@p_readout{bits}({stored}, (const uint8_t *){x.at}, {y.at}, {layer.inputs}, {layer.outputs});")


def _levels(name: str, layer: Quantised | QuantisedConv, weight: Array, read: str, written: str, body: Body) -> None:
    """Levels of levels: `read` and `written` are C expressions of type uint8_t *."""
    bits, low = storage_bits(layer.width), 0 if layer.activation == "relu" else -LEVELS
    stored = *sums(name, ((weight, layer.bias),), bits, body), steps(name, layer.multiplier, layer.shift, body)
    need(body, "level", _LEVEL)
    need(body, f"levels{bits}", made_for(bits, _LEVELS))
    looked_up = table(body) if layer.activation == "tanh" else "0"
    sizes = f"{weight.shape[0]}, {weight.shape[1]}"
    body.add(f"@p_levels{bits}({', '.join(stored)}, {read}, {written}, {sizes}, {low}, {looked_up});")


def _convolve(name: str, layer: QuantisedConv, x: Row, y: Row, body: Body) -> None:
    """A dense layer at every place of the output. Weights lie as the image does, so that a window is copied in runs, or
    read where it lies if it is one run."""
    (height, width), (down, across), (tall, broad) = layer.size, layer.stride, layer.window
    channels, out = layer.weight.shape[2:]
    if layer.layout == "chw":
        weight, each, planes = layer.weight.transpose(2, 0, 1, 3).reshape(-1, out), 1, channels
    else:
        weight, each, planes = layer.matrix, channels, 1
    run, pitch, plane = broad * each, width * each, height * width
    i, j = (f"k{body.depth + d}" for d in range(2))
    body.add(f"for ({i} = 0; {i} < {layer.out_size[0]}; {i}++)")
    body.add(f"    for ({j} = 0; {j} < {layer.out_size[1]}; {j}++) {{")
    body.depth += 2
    read = f"(const uint8_t *){x.at} + {i} * {down * pitch} + {j} * {across * each}"
    written = f"(uint8_t *){y.at} + {i} * {layer.out_size[1] * out} + {j} * {out}"
    if (tall == 1 or run == pitch) and (planes == 1 or tall * run == plane):
        _levels(name, layer, weight, read, written, body)
    else:
        need(body, "gather", _GATHER)
        window = body.take(_floats(len(weight)))
        body.add(f"@p_gather({read}, (uint8_t *){window.at}, {planes}, {tall}, {run}, {pitch}, {plane});")
        _levels(name, layer, weight, f"(const uint8_t *){window.at}", written, body)
        body.hand_back(window)
    body.depth -= 2
    body.add("    }")


# ---------------------------------------------------------------- what these layers and memories share


def need(body: Body, name: str, text: str) -> None:
    """Write a routine where it is used first."""
    if name not in body.used:
        body.used.add(name)
        body.functions.append(text)


def made_for(bits: int, text: str) -> str:
    """A routine for weights of so many bits."""
    stride = {8: "n_in", 4: "(n_in + 1) / 2", 2: "(n_in + 3) / 4"}[bits]
    return text.replace("#", str(bits)).replace("@Z", str(_zero(bits))).replace("@S", stride)


def sums(name: str, sides: Sequence[tuple[Array, Array]], bits: int, body: Body) -> tuple[str, str]:
    """The names of weights [in, out] and biases [out], those of all sides one after the other, and the routines of sums."""
    need(body, "total", _TOTAL)
    need(body, f"dots{bits}", _DOTS[bits])
    rows = np.concatenate([_rows(weight, bits) for weight, _ in sides])
    raised = [bias.astype(np.int64) - ZERO * weight.astype(np.int64).sum(0) for weight, bias in sides]
    return (
        body.constant(f"weight_{name}", rows, "uint8_t"),
        body.constant(f"bias_{name}", np.concatenate(raised), "int32_t"),
    )


def steps(name: str, multiplier: Array, shift: Array, body: Body) -> str:
    """The name of the pairs (m, k - 1) that make sums smaller, and the routine that does it."""
    need(body, "rescaled", _RESCALED)
    return body.constant(f"step_{name}", np.stack([multiplier, shift - 1], axis=1), "uint8_t")


def table(body: Body) -> str:
    """The tanh of every level, written once."""
    if "tanh_levels" not in body.used:
        body.used.add("tanh_levels")
        body.constant("tanh_levels", tanh_levels() + ZERO, "uint8_t")
    return "@p_tanh_levels"


def _floats(levels: int) -> int:
    return -(-levels // 4)


def _rows(weight: Array, bits: int) -> Array:
    """Weights [in, out] as bytes, output by output, each beginning with a byte of its own."""
    return np.concatenate([packing.pack(row + _zero(bits), bits) for row in weight.T])


def _zero(bits: int) -> int:
    """What is added to a weight of `bits` bits to store it as a positive number."""
    return 1 << (bits - 1)
