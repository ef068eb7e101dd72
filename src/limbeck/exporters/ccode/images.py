"""The C text of the routines for images: the window of an output place, convolution and pooling.

Requirements that shaped it: one routine for every size, stride, padding and layout, told by a few constants, so that
code stays small; a window is copied once, padding and layout included, and then multiplied with all channels; two
places share each weight that is read; outputs are blocks of vectors, so that the order of every sum is the source's.
"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.contracts import Conv, Pool

_WINDOWS = """
typedef struct {
    int height, width, channels, kernel_height, kernel_width, down, across, top, left, out_height, out_width;
} @p_windows;
"""

_WINDOW = """
/* the window of output place p as kernel height x kernel width x channels, zeros where it leaves the image */
static void @p_window(const @p_windows *g, const float *x, int p, float *to, int chw)
{
    const int row = p / g->out_width * g->down - g->top, column = p % g->out_width * g->across - g->left;
    const int each = chw ? 1 : g->channels, next = chw ? g->height * g->width : 1, run = g->kernel_width * g->channels;
    int r, c, k;
    for (r = row; r < row + g->kernel_height; r++) {
        const int inside = r >= 0 && r < g->height;
        if (inside && !chw && column >= 0 && column + g->kernel_width <= g->width) {
            const float *from = x + (r * g->width + column) * each;
            for (k = 0; k < run; k++)
                to[k] = from[k];
            to += run;
            continue;
        }
        for (c = column; c < column + g->kernel_width; c++, to += g->channels) {
            const int seen = inside && c >= 0 && c < g->width;
            const float *from = seen ? x + (r * g->width + c) * each : x;
            for (k = 0; k < g->channels; k++)
                to[k] = seen ? from[k * next] : 0.0f;
        }
    }
}
"""

_POOL = """
/* y[o] = the @METHOD of the window's places inside the image, per channel */
static void @p_pool_@METHOD(const @p_windows *g, const float *x, float *y)
{
    int i, j, r, c, k;
    for (i = 0; i < g->out_height; i++)
        for (j = 0; j < g->out_width; j++, y += g->channels) {
            const int row = i * g->down - g->top, column = j * g->across - g->left;
            const int r0 = row > 0 ? row : 0, c0 = column > 0 ? column : 0;
            const int r1 = row + g->kernel_height < g->height ? row + g->kernel_height : g->height;
            const int c1 = column + g->kernel_width < g->width ? column + g->kernel_width : g->width;
            for (k = 0; k < g->channels; k++)
                y[k] = @START;
            for (r = r0; r < r1; r++)
                for (c = c0; c < c1; c++) {
                    const float *v = x + (r * g->width + c) * g->channels;
                    for (k = 0; k < g->channels; k++)
                        @TAKE;
                }@END
        }
}
"""
_MEAN_END = """
            for (k = 0; k < g->channels; k++)
                y[k] /= (float)((r1 - r0) * (c1 - c0));"""
_POOLS = {
    "max": ("x[(r0 * g->width + c0) * g->channels + k]", "y[k] = v[k] > y[k] ? v[k] : y[k]", ""),
    "mean": ("0.0f", "y[k] += v[k]", _MEAN_END),
}


def routines(used: set[str]) -> str:
    """Those of pool_max and pool_mean that are in `used`, and what these and the convolution need."""
    parts = [_WINDOWS] if used & {"conv", "pool_max", "pool_mean"} else []
    parts += [_WINDOW] if "conv" in used else []
    for method, (start, take, end) in _POOLS.items():
        if f"pool_{method}" in used:
            text = _POOL.replace("@METHOD", method).replace("@START", start)
            parts.append(text.replace("@TAKE", take).replace("@END", end))
    return "".join(parts)


def numbers(layer: Conv | Pool, kernel: Sequence[int], channels: int) -> str:
    """The constants of a layer's windows, as the routines read them."""
    values = (*layer.size, channels, *kernel[:2], *layer.stride, layer.padding[0], layer.padding[2], *layer.out_size)
    return ", ".join(str(int(v)) for v in values)


def convolution() -> str:
    """The routine itself, over vectors."""
    return f"""
/* y[p][o] = b[o] + sum_k w[k][o] window_p[k], k = (row, column, channel), for two places p at a time */
static void @p_conv(const @p_windows *g, const float *w, const float *b, const float *x, float *y, float *window,
                    int n_out, int chw)
{{
    const int n = g->kernel_height * g->kernel_width * g->channels, places = g->out_height * g->out_width;
    int p, i;
    for (p = 0; p < places; p += 2) {{
        const int q = p + 1 < places ? p + 1 : p;
        const float *u = window, *v = window + n;
        float *yu = y + p * n_out, *yv = y + q * n_out;
        int o = 0, left;
        @p_window(g, x, p, window, chw);
        @p_window(g, x, q, window + n, chw);
{_block(4)}{_block(2)}{_block(1)}        for (left = n_out % @P_LANES; left > 0; left--, o++) {{
            float s = b[o], t = b[o];
            for (i = 0; i < n; i++) {{
                s = u[i] * w[i * n_out + o] + s;
                t = v[i] * w[i * n_out + o] + t;
            }}
            yu[o] = s;
            yv[o] = t;
        }}
    }}
}}
"""


def _block(vectors: int) -> str:
    """A block of `vectors` vectors of output channels."""

    def lines(template: str, indent: int) -> str:
        return "".join(" " * indent + template.replace("#", str(v)) + "\n" for v in range(vectors))

    return (
        f"        for (; o + {vectors} * @P_LANES <= n_out; o += {vectors} * @P_LANES) {{\n"
        "            const float *k = w + o;\n"
        + lines("@p_vec s# = @P_LOAD(b + o + # * @P_LANES), t# = s#;", 12)
        + "            for (i = 0; i < n; i++, k += n_out) {\n"
        + lines("const @p_vec k# = @P_LOAD(k + # * @P_LANES);", 16)
        + lines("s# = u[i] * k# + s#;", 16)
        + lines("t# = v[i] * k# + t#;", 16)
        + "            }\n"
        + lines("*(@p_vec *)(yu + o + # * @P_LANES) = s#;", 12)
        + lines("*(@p_vec *)(yv + o + # * @P_LANES) = t#;", 12)
        + "        }\n"
    )
