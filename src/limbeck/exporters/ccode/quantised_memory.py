"""Gated memories in whole numbers as C: gates of 32 bits, a memory of 16 bits that lies in the caller's state.

Requirements that shaped it: gates need no room of their own, because all sums of a unit are made at once, two units at
a time so that an input is loaded for both; only the levels of the memory before are copied, a byte each. What is
shifted is raised by a power of two first, so that it is positive, and lowered again afterwards.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import QuantisedGru
from limbeck.contracts.quantised import storage_bits
from limbeck.exporters.ccode import quantised as cquantised
from limbeck.exporters.ccode.body import Body, Row

MEMORY = "int16_t"  # the C type of a number that is kept

_GATE = """
/* 127 + clip((v + 8) >> 4, -127, 127): where a gate's sum, at most 2^17, lies in a table of 255 numbers */
static inline int32_t @p_entry(int32_t v)
{
    const int32_t q = (int32_t)((uint32_t)(v + 8 + INT32_C(0x100000)) >> 4) - INT32_C(0x10000);
    return q < -127 ? 0 : q > 127 ? 254 : q + 127;
}

/* 0 to 256: a sigmoid, from a tanh of 0 to 255 about 128 */
static inline int32_t @p_gate(int32_t v, const uint8_t *table)
{
    const int32_t t = table[@p_entry(v)];
    return t + (t >= 192) - (t <= 64);
}

/* The next memory z m + (1 - z) n with n = tanh(x + r h), from what the inputs and the memory give to the gates reset,
   update and new: every second number. */
static inline int16_t @p_kept(int32_t m, const int32_t *x, const int32_t *h, const uint8_t *table)
{
    const int32_t r = @p_gate(x[0] + h[0], table), z = @p_gate(x[2] + h[2], table);
    const int32_t part = (int32_t)((uint32_t)(r * h[4] + 128 + INT32_C(0x1000000)) >> 8) - INT32_C(0x10000);
    const int32_t n = table[@p_entry(x[4] + part)] - 128;
    return (int16_t)((int32_t)((uint32_t)(z * m + (256 - z) * 128 * n + 128 + INT32_C(0x800000)) >> 8) - INT32_C(0x8000));
}

/* the bytes of the levels next to a memory */
static void @p_nearest(const int16_t *memory, uint8_t *y, unsigned n)
{
    while (n-- > 0)
        *y++ = (uint8_t)((uint32_t)(*memory++ + INT32_C(0x4040)) >> 7);
}
"""

_SIDE = """
/* What one side gives to the gates of units j and j + 1, or of j twice: its rows are reset, update, new of n units each. */
static void @p_side#(const uint8_t *w, const int32_t *bias, const uint8_t *step, const uint8_t *x, unsigned n_in,
    unsigned n, unsigned j, int32_t shared, int32_t *sums)
{
    const unsigned stride = @S, next = j + 1 < n;
    const int32_t *const end = sums + 6;
    for (; sums < end; sums += 2, j += n) {
        @p_dots#(w + j * stride, w + (j + next) * stride, x, n_in, sums);
        sums[0] = @p_rescaled(sums[0] - shared + bias[j], step + 2 * j, -32767, 32767);
        sums[1] = @p_rescaled(sums[1] - shared + bias[j + next], step + 2 * (j + next), -32767, 32767);
    }
}
"""

_GRU = """
/* one step; the constants of the memory's side lie behind those of the inputs, which are 3 n rows */
static void @p_gru_levels#(const uint8_t *w, const int32_t *bias, const uint8_t *step, const uint8_t *table,
    const uint8_t *x, uint8_t *y, uint8_t *before, int16_t *memory, unsigned n_in, unsigned n)
{
    const uint8_t *const w_h = w + 3 * n * (@S);
    const int32_t shared_x = @Z * @p_total(x, n_in);
    int32_t shared_h, from_x[6], from_h[6];
    unsigned j;
    @p_nearest(memory, before, n);
    shared_h = @Z * @p_total(before, n);
    for (j = 0; j < n; j += 2) {
        @p_side#(w, bias, step, x, n_in, n, j, shared_x, from_x);
        @p_side#(w_h, bias + 3 * n, step + 6 * n, before, n, n, j, shared_h, from_h);
        memory[j] = @p_kept(memory[j], from_x, from_h, table);
        if (j + 1 < n)
            memory[j + 1] = @p_kept(memory[j + 1], from_x + 1, from_h + 1, table);
    }
    @p_nearest(memory, y, n);
}
"""


def write(name: str, layer: QuantisedGru, x: Row, y: Row, body: Body) -> None:
    """The statement of one step; the memory lies in the state under the layer's kind and name."""
    bits = storage_bits(layer.width)
    sides = ((layer.weight_x, layer.bias_x), (layer.weight_h, layer.bias_h))
    multiplier, shift = (
        np.concatenate([getattr(layer, f"{part}_{side}") for side in "xh"]) for part in ("multiplier", "shift")
    )
    stored = (
        *cquantised.sums(name, sides, bits, body),
        cquantised.steps(name, multiplier, shift, body),
        cquantised.table(body),
    )
    cquantised.need(body, "gate", _GATE)
    cquantised.need(body, f"gru_levels{bits}", cquantised.made_for(bits, _SIDE + _GRU))
    before = body.take(cquantised.held(layer))
    rows = f"(const uint8_t *){x.at}, (uint8_t *){y.at}, (uint8_t *){before.at}, memory->{layer.kind}{name}"
    body.add(f"@p_gru_levels{bits}({', '.join(stored)}, {rows}, {layer.inputs}, {layer.size});")
    body.hand_back(before)
