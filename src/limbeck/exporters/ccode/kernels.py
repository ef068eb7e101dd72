"""The C text of the few routines a policy is made of; a policy carries only those it calls.

Requirements that shaped it: the order of every sum is written in the source, so no fast-math is needed and the lane
count of the machine changes nothing; weights lie in the order they are read; a plain C99 compiler sees plain loops
over float, GCC and Clang on SIMD machines see the same loops over vectors, inlined so that every size is a constant;
elsewhere the code stays a few hundred bytes. tanh, and what is made of it, needs no libm: the same bits everywhere.
"""

from __future__ import annotations

from limbeck.exporters.ccode import images as cimages

WIDE = 16  # outputs from which a layer is computed over blocks of outputs, [in][out]
DEEP = 16  # inputs from which a narrower layer is computed in 16 partial sums, [out][in]

_SIMD = """\
typedef float @p_vec __attribute__((vector_size(@P_LANES * 4), aligned(4), may_alias));
typedef int @p_mask __attribute__((vector_size(@P_LANES * 4)));
#define @P_ZERO {0.0f}
#define @P_PICK(test, v, w) ((@p_vec)(((@p_mask)(v) & (@p_mask)(test)) | ((@p_mask)(w) & ~(@p_mask)(test))))
#define @P_SIGN(v, zero) ((@p_vec)(((@p_mask)(v) & (@p_mask)(-(zero))) | (@p_mask)((zero) + 1.0f)))
#define @P_RELU(v, zero) ((@p_vec)((@p_mask)(v) & ~(@p_mask)((zero) > (v))))
"""

_ACCESS = """\
#define @P_LOAD(p) (*(const @p_vec *)(p))
#define @P_STORE(p) (*(@p_vec *)(p))
"""

_VECTORS = f"""\
#if defined(__GNUC__) && (defined(__SSE__) || defined(__ARM_NEON))
#if defined(__AVX512F__)
#define @P_LANES 16
#elif defined(__AVX__)
#define @P_LANES 8
#else
#define @P_LANES 4
#endif
#define @P_ALIGNED __attribute__((aligned(64)))
{_SIMD}#else
#define @P_LANES 1
typedef float @p_vec;
#define @P_ALIGNED
#define @P_ZERO 0.0f
#define @P_PICK(test, v, w) ((test) ? (v) : (w))
#define @P_SIGN(v, zero) ((v) > (zero) ? 1.0f : -1.0f)
#define @P_RELU(v, zero) ((zero) > (v) ? (zero) : (v))
#endif
{_ACCESS}#if @P_LANES > 1 && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)
#define @P_INLINE static inline __attribute__((always_inline))
#if !defined(__clang__) && __GNUC__ >= 8
#define @P_PRAGMA(text) _Pragma(#text)
#define @P_UNROLL(times) @P_PRAGMA(GCC unroll times)
#endif
#else
#define @P_INLINE static
#endif
#ifndef @P_UNROLL
#define @P_UNROLL(times)
#endif
"""

_NARROW = """
/* t[l] = sums of four of 16, l < 4 */
#if @P_LANES > 1
typedef float @p_four __attribute__((vector_size(16), may_alias));
#define @P_FOUR(p) (*(@p_four *)(p))
#define @P_FOLD(t) @P_FOUR(t) = (@P_FOUR(t) + @P_FOUR((t) + 8)) + (@P_FOUR((t) + 4) + @P_FOUR((t) + 12))
#else
#define @P_FOLD(t) for (l = 0; l < 4; l++) t[l] = (t[l] + t[l + 8]) + (t[l + 4] + t[l + 12])
#endif
#if @P_LANES == 16 && (defined(__clang__) || __GNUC__ >= 12)
/* halves, quarters, pairs and neighbours: the same sums of four outputs in a third of the shuffles */
#define @P_HALVES(s, t) __builtin_shufflevector(s, t, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + \\
    __builtin_shufflevector(s, t, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define @P_QUARTERS(s, t) __builtin_shufflevector(s, t, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) + \\
    __builtin_shufflevector(s, t, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define @P_PAIRS(s) __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define @P_NEIGHBOURS(s) __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#endif

/* y[o] = b[o] + sum_i w[o][i] x[i] in 16 partial sums, n_in >= 16 */
@P_INLINE void @p_dense_narrow(const float *w, const float *b, const float *x, float *y, int n_in, int n_out)
{
    const int whole = n_in - n_in % 16;
    int o = 0, i, l;
#ifdef @P_HALVES
    for (; o + 4 <= n_out; o += 4, w += 4 * n_in) {
        @p_vec s[4];
        for (l = 0; l < 4; l++) {
            s[l] = @P_LOAD(x) * @P_LOAD(w + l * n_in);
            @P_UNROLL(4)
            for (i = 16; i < whole; i += 16)
                s[l] = @P_LOAD(x + i) * @P_LOAD(w + l * n_in + i) + s[l];
        }
        s[0] = @P_HALVES(s[0], s[1]);
        s[2] = @P_HALVES(s[2], s[3]);
        s[0] = @P_QUARTERS(s[0], s[2]);
        s[0] = s[0] + @P_PAIRS(s[0]);
        s[0] = s[0] + @P_NEIGHBOURS(s[0]);
        for (l = 0; l < 4; l++) {
            float sum = s[0][4 * l] + b[o + l];
            for (i = whole; i < n_in; i++)
                sum += w[l * n_in + i] * x[i];
            y[o + l] = sum;
        }
    }
#endif
    for (; o < n_out; o++, w += n_in) {
        @P_ALIGNED float t[16];
        float sum;
        for (l = 0; l < 16; l += @P_LANES) {
            @p_vec s = @P_LOAD(x + l) * @P_LOAD(w + l);
            @P_UNROLL(4)
            for (i = 16; i < whole; i += 16)
                s = @P_LOAD(x + i + l) * @P_LOAD(w + i + l) + s;
            *(@p_vec *)(t + l) = s;
        }
        @P_FOLD(t);
        sum = ((t[0] + t[2]) + (t[1] + t[3])) + b[o];
        for (i = whole; i < n_in; i++)
            sum += w[i] * x[i];
        y[o] = sum;
    }
}
"""

_SMALL = """
/* y[o] = b[o] + sum_i w[o][i] x[i] */
@P_INLINE void @p_dense_small(const float *w, const float *b, const float *x, float *y, int n_in, int n_out)
{
    int o, i;
    for (o = 0; o < n_out; o++) {
        float sum = b[o];
        for (i = 0; i < n_in; i++)
            sum += *w++ * x[i];
        y[o] = sum;
    }
}
"""

_GRU = """
/* h' = (1 - z) n + z h from the gates' inputs of x and of h, each [reset | update | new]; x's are overwritten */
static void @p_gru(float *gates, const float *from_h, float *h, int n)
{
    float *const fresh = gates + 2 * n;
    int i;
    for (i = 0; i < 2 * n; i++)
        gates[i] += from_h[i];
    @p_sigmoid(gates, 2 * n);
    for (i = 0; i < n; i++)
        fresh[i] += gates[i] * from_h[2 * n + i];
    @p_tanh(fresh, n);
    for (i = 0; i < n; i++)
        h[i] = (1.0f - gates[n + i]) * fresh[i] + gates[n + i] * h[i];
}
"""

_LSTM = """
/* c' = f c + i g and h' = o tanh(c') from the gates' inputs, [input | forget | cell | output]; they are overwritten */
static void @p_lstm(float *gates, float *h, float *c, int n)
{
    int i;
    @p_sigmoid(gates, 2 * n);
    @p_tanh(gates + 2 * n, n);
    @p_sigmoid(gates + 3 * n, n);
    for (i = 0; i < n; i++)
        h[i] = c[i] = gates[n + i] * c[i] + gates[i] * gates[2 * n + i];
    @p_tanh(h, n);
    for (i = 0; i < n; i++)
        h[i] *= gates[3 * n + i];
}
"""

_NORM = """
/* y = (x - mean) / sqrt(variance + epsilon) * w + b, sums in 8 parts */
static float @p_mean(const float *x, float centre, int n, int squared)
{
    float t[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    int i;
    for (i = 0; i < n; i++) {
        const float v = x[i] - centre;
        t[i % 8] += squared ? v * v : v;
    }
    return (((t[0] + t[4]) + (t[1] + t[5])) + ((t[2] + t[6]) + (t[3] + t[7]))) / (float)n;
}

static void @p_norm(const float *w, const float *b, const float *x, float *y, int n, float epsilon)
{
    const float mean = @p_mean(x, 0.0f, n, 0);
    const float spread = sqrtf(@p_mean(x, mean, n, 1) + epsilon);
    int i;
    for (i = 0; i < n; i++)
        y[i] = (x[i] - mean) / spread * w[i] + b[i];
}
"""

_ARGMAX = """
/* index of the first greatest number; always in 0 .. n - 1, NaN or not */
static int32_t @p_argmax(const float *v, int n)
{
    float top = v[0];
    int i, best = 0;
    for (i = 1; i < n; i++) {
        best = v[i] > top ? i : best;
        top = v[i] > top ? v[i] : top;
    }
    return (int32_t)best;
}
"""

_CLIP = """
/* NaN passes, so that it is seen */
static float @p_clip(float v, float low, float high)
{
    return v < low ? low : (v > high ? high : v);
}
"""

_BOUND = """
/* an action within its bounds; what is no number becomes 0 or the bound next to it */
static float @p_bound(float v, float low, float high)
{
    v = v == v ? v : 0.0f;
    return v < low ? low : (v > high ? high : v);
}
"""

# tanh v = v P(v^2) / Q(v^2) within |v| <= 8, minimax of the relative error (1.5e-7) by Lawson's iteration; beyond, one
_TANH_OF = """
/* tanh without libm, |error| < 6e-7 relative and absolute; NaN passes */
@P_INLINE @p_vec @p_tanh_of(@p_vec v)
{
    const @p_vec zero = @P_ZERO, u = v * v;
    const @p_vec p = (((0x1.7f7966p-17f * u + 0x1.82cbecp-9f) * u + 0x1.08b7b4p-3f) * u + 0x1.fffffcp-1f) * v;
    const @p_vec q = (((0x1.080e42p-22f * u + 0x1.f48688p-13f) * u + 0x1.8631acp-6f) * u + 0x1.d9b0ep-2f) * u + 1.0f;
    return @P_PICK(u > 64.0f, @P_SIGN(v, zero), p / q);
}
"""

_EACH = """
@P_INLINE void @p_@NAME(float *y, int n)
{
    int i;
    @P_UNROLL(4)
    for (i = 0; i + @P_LANES <= n; i += @P_LANES) {
        const @p_vec v = @P_LOAD(y + i);
        @P_STORE(y + i) = @EXPRESSION;
    }
#if @P_LANES > 1
    if (i < n) {
        @P_ALIGNED float rest[@P_LANES] = {0.0f};
        @p_vec v;
        int k;
        for (k = 0; k < n - i; k++)
            rest[k] = y[i + k];
        v = @P_LOAD(rest);
        @P_STORE(rest) = @EXPRESSION;
        for (k = 0; k < n - i; k++)
            y[i + k] = rest[k];
    }
#endif
}
"""

SMOOTH = {  # of a vector v, by tanh alone
    "tanh": "@p_tanh_of(v)",
    "sigmoid": "0.5f * @p_tanh_of(0.5f * v) + 0.5f",
    "silu": "v * (0.5f * @p_tanh_of(0.5f * v) + 0.5f)",
}
ACTIVATIONS = {  # of one number v; comparisons are written so that NaN passes
    "relu": "0.0f > v ? 0.0f : v",
    "elu": "v > 0.0f ? v : expm1f(v)",
    "leaky_relu": "v > 0.0f ? v : 0.01f * v",
    "gelu": "0.5f * v * (1.0f + erff(v * 0.70710678f))",
    "hardtanh": "v < -1.0f ? -1.0f : (v > 1.0f ? 1.0f : v)",
    "softplus": "v > 0.0f ? v + log1pf(expf(-v)) : log1pf(expf(v))",
    "half_log": "0.5f * logf(v)",  # of a variance, for state-dependent exploration
}
LIBM = frozenset({"elu", "gelu", "softplus", "half_log", "norm"})
_NEEDS = {"gru": {"tanh", "sigmoid"}, "lstm": {"tanh", "sigmoid"}}


def library(used: set[str]) -> str:
    """The routines named in `used`: wide, narrow, small, conv, pool_max, pool_mean, gru, lstm, norm, argmax, clip, bound,
    and the activations."""
    used = _with_needs(used)
    fixed = {"norm": _NORM, "argmax": _ARGMAX, "clip": _CLIP, "bound": _BOUND}
    vectors = used & {"wide", "narrow", "small", "conv", *SMOOTH, *ACTIVATIONS}
    parts = [_VECTORS if vectors else "#define @P_ALIGNED\n", cimages.routines(used)]
    parts += [text for name, text in fixed.items() if name in used]
    return "".join([*parts, over_vectors(used)])


def simd(lanes: int) -> str:
    """What routines over vectors of `lanes` floats are written with, in place of what the build has."""
    return f"#undef @P_LANES\n#define @P_LANES {lanes}\n{_SIMD}{_ACCESS}"


def over_vectors(used: set[str]) -> str:
    """Those of the routines in `used` that are written over vectors, and those that call them."""
    used = _with_needs(used)
    fixed = {"wide": _wide(), "conv": cimages.convolution(), "narrow": _NARROW, "small": _SMALL}
    parts = [text for name, text in fixed.items() if name in used]
    parts += [_TANH_OF] if used & set(SMOOTH) else []
    parts += [_EACH.replace("@NAME", k).replace("@EXPRESSION", text) for k, text in SMOOTH.items() if k in used]
    parts += [_activation(name) for name in ACTIVATIONS if name in used]
    parts += [text for name, text in {"gru": _GRU, "lstm": _LSTM}.items() if name in used]
    return "".join(parts)


def _with_needs(used: set[str]) -> set[str]:
    return used.union(*(_NEEDS.get(name, set()) for name in used))


def _activation(name: str) -> str:
    return f"""
@P_INLINE void @p_{name}(float *y, int n)
{{
    int i;
    for (i = 0; i < n; i++) {{
        const float v = y[i];
        y[i] = {ACTIVATIONS[name]};
    }}
}}
"""


def _wide() -> str:
    return f"""
/* y[o] = b[o] + sum_i w[i][o] x[i], two partial sums (even and odd i) per output, held in registers */
@P_INLINE void @p_dense_wide(const float *w, const float *b, const float *x, float *y, int n_in, int n_out, int relu)
{{
    const @p_vec zero = @P_ZERO;
    const int even = n_in - n_in % 2;
    int o = 0, left, i;
{_block(4)}{_block(2)}{_block(1)}    for (left = n_out % @P_LANES; left > 0; left--, o++) {{
        float s = b[o], t = 0.0f;
        for (i = 0; i < even; i += 2) {{
            s = x[i] * w[i * n_out + o] + s;
            t = x[i + 1] * w[(i + 1) * n_out + o] + t;
        }}
        if (even < n_in)
            s = x[even] * w[even * n_out + o] + s;
        s = s + t;
        y[o] = relu && 0.0f > s ? 0.0f : s;
    }}
}}
"""


def _block(vectors: int) -> str:
    """A block of `vectors` vectors of outputs."""
    span = range(vectors)

    def lines(template: str, indent: int) -> str:
        return "".join(" " * indent + template.replace("#", str(v)) + "\n" for v in span)

    return (
        f"    for (; o + {vectors} * @P_LANES <= n_out; o += {vectors} * @P_LANES) {{\n"
        "        const float *p = w + o;\n"
        + lines("@p_vec s# = @P_LOAD(b + o + # * @P_LANES), t# = zero;", 8)
        + "        @P_UNROLL(8)\n        for (i = 0; i < even; i += 2, p += 2 * n_out) {\n"
        + lines("s# = x[i] * @P_LOAD(p + # * @P_LANES) + s#;", 12)
        + lines("t# = x[i + 1] * @P_LOAD(p + n_out + # * @P_LANES) + t#;", 12)
        + "        }\n        if (even < n_in) {\n"
        + lines("s# = x[even] * @P_LOAD(p + # * @P_LANES) + s#;", 12)
        + "        }\n"
        + lines("s# = s# + t#;", 8)
        + "        if (relu) {\n"
        + lines("s# = @P_RELU(s#, zero);", 12)
        + "        }\n"
        + lines("*(@p_vec *)(y + o + # * @P_LANES) = s#;", 8)
        + "    }\n"
    )
