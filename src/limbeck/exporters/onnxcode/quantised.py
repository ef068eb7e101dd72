"""Layers in whole numbers as ONNX nodes: floats that hold whole numbers, exact on every runtime.

Weights and levels are small enough for float32 products to be exact in any order; rounding and requantising go through
float64, where nothing is rounded on the way. QLinearMatMul has no multiplier of its own bits and rounds halves to even.
A convolution is written as its windows and one product: an engine may take Winograd's algorithm for `Conv`, whose
transforms multiply with sixths and twenty-fourths (Lavin & Gray 2016, arXiv:1509.09308), which no float holds.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import LEVELS, Array, Floats, Quantise, Quantised, QuantisedConv, QuantisedGru, Readout
from limbeck.contracts.quantised import FINE, HELD, WIDEST_GATE, gate_levels, tanh_levels
from limbeck.exporters.onnxcode.graph import Graph

_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # element types of TensorProto


def write(
    x: str, place: str, layer: Quantise | Quantised | QuantisedConv | QuantisedGru | Readout, graph: Graph
) -> str:
    """[N, outputs] levels, or real numbers behind the readout."""
    name = f"{layer.kind}{place}"
    match layer:
        case Quantise():
            return _quantise(x, name, layer, graph)
        case Readout():
            total = _sums(x, name, layer.weight, layer.bias, graph)
            return graph.node("Mul", [total, graph.constant(f"scale_{name}", layer.scale)], name)
        case QuantisedConv():
            return _convolve(x, name, layer, graph)
        case QuantisedGru():
            return _gru(x, name, layer, graph)
    total = _sums(x, name, layer.weight, layer.bias, graph)
    r = _rescaled(total, name, layer.multiplier, layer.shift, graph)
    return _activated(r, name, layer.activation, graph)


def _sums(x: str, name: str, weight: Floats, bias: Floats, graph: Graph) -> str:
    """x @ weight + bias; the weights lie in the file as int8, the narrowest type of opset 17."""
    stored = graph.constant(f"weight_{name}", weight.astype(np.int8))
    cast = graph.node("Cast", [stored], f"{name}_weight", to=_FLOAT)
    return graph.node("Gemm", [x, cast, graph.constant(f"bias_{name}", bias.astype(np.float32))], f"sum_{name}")


def _rescaled(total: str, name: str, multiplier: Floats, shift: Floats, graph: Graph) -> str:
    """`runtimes.whole.rescaled`."""
    step = np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int64))
    wide = graph.node("Cast", [total], f"{name}_wide", to=_DOUBLE)
    return _rounded(graph.node("Mul", [wide, graph.constant(f"step_{name}", step)], f"{name}_scaled"), name, graph)


def _rounded(v: str, name: str, graph: Graph) -> str:
    """floor(v + 1/2) of float64, as float32."""
    half = graph.constant("half_double", np.array(0.5, np.float64))
    down = graph.node("Floor", [graph.node("Add", [v, half], f"{name}_lifted")], f"{name}_down")
    return graph.node("Cast", [down], f"{name}_rounded", to=_FLOAT)


def _activated(r: str, name: str, activation: str, graph: Graph) -> str:
    low, high = graph.number(0.0 if activation == "relu" else -LEVELS), graph.number(LEVELS)
    if activation != "tanh":
        return graph.node("Clip", [r, low, high], name)
    return _looked_up(graph.node("Clip", [r, low, high], f"{name}_clipped"), name, "tanh_levels", tanh_levels(), graph)


def _looked_up(level: str, out: str, table: str, values: Array, graph: Graph) -> str:
    """What a table of 255 numbers says of levels."""
    raised = graph.node("Add", [level, graph.number(LEVELS)], f"{out}_raised")
    index = graph.node("Cast", [raised], f"{out}_index", to=_INT64)
    return graph.node("Gather", [graph.constant(table, values), index], out)


# ---------------------------------------------------------------- from real numbers


def _quantise(x: str, name: str, layer: Quantise, graph: Graph) -> str:
    size = layer.offset.size
    if layer.times > 1:  # stretch by stretch: the ranges lie in the file once
        x = graph.reshape(x, (0, layer.times, size), f"{name}_stretches")
    centred = graph.node("Sub", [x, graph.constant(f"offset_{name}", layer.offset)], f"{name}_centred")
    v = graph.node("Mul", [centred, graph.constant(f"scale_{name}", layer.scale)], f"{name}_steps")
    if layer.times > 1:
        v = graph.reshape(v, (0, layer.inputs), f"{name}_row")
    missing = graph.node("IsNaN", [v], f"{name}_missing")
    known = graph.node("Where", [missing, graph.number(0.0), v], f"{name}_known")
    clipped = graph.node("Clip", [known, graph.number(-LEVELS), graph.number(LEVELS)], f"{name}_clipped")
    return _rounded(graph.node("Cast", [clipped], f"{name}_wide", to=_DOUBLE), name, graph)


# ---------------------------------------------------------------- images


def _convolve(x: str, name: str, layer: QuantisedConv, graph: Graph) -> str:
    """One row per window, as wide as the kernel, then a `Quantised` layer."""
    seen = graph.reshape(_windows(x, name, layer, graph), (-1, len(layer.matrix)), f"{name}_windows")
    total = _sums(seen, name, layer.matrix, layer.bias, graph)
    r = _rescaled(total, name, layer.multiplier, layer.shift, graph)
    made = _activated(r, f"{name}_out", layer.activation, graph)
    return graph.reshape(made, (-1, layer.outputs), name)


def _windows(x: str, name: str, layer: QuantisedConv, graph: Graph) -> str:
    """[N, out height, out width, kernel height, kernel width, channels]: rows are picked, then columns."""
    (height, width), channels = layer.size, int(layer.weight.shape[2])
    sides = zip(layer.out_size, layer.stride, layer.window, strict=True)
    rows, columns = (
        graph.constant(f"{side}_{name}", (np.arange(count)[:, None] * stride + np.arange(kernel)).astype(np.int64))
        for side, (count, stride, kernel) in zip(("rows", "columns"), sides, strict=True)
    )
    chw = layer.layout == "chw"
    image = graph.reshape(x, (0, channels, height, width) if chw else (0, height, width, channels), f"{name}_in")
    axis = 2 if chw else 1
    picked = graph.node("Gather", [image, rows], f"{name}_rows", axis=axis)
    picked = graph.node("Gather", [picked, columns], f"{name}_columns", axis=axis + 2)
    order = [0, 2, 4, 3, 5, 1] if chw else [0, 1, 3, 2, 4, 5]
    return graph.node("Transpose", [picked], f"{name}_patches", perm=order)


# ---------------------------------------------------------------- memory


def _gru(x: str, name: str, layer: QuantisedGru, graph: Graph) -> str:
    """The cell written out: the equation stands at `contracts.QuantisedGru`. Divisors are powers of two."""
    memory = graph.memory(name, layer.size, graph.number(0.0))
    parts = [
        *_gates(x, f"{name}_x", layer.weight_x, layer.bias_x, (layer.multiplier_x, layer.shift_x), graph),
        *_gates(_shifted(memory, f"{name}_level", HELD, graph), f"{name}_h", layer.weight_h, layer.bias_h,
                (layer.multiplier_h, layer.shift_h), graph),
    ]  # fmt: skip
    gates = []
    for gate, word in enumerate(("reset", "update")):
        both = graph.node("Add", [parts[gate], parts[3 + gate]], f"{name}_{word}_sum")
        entry = _entry(both, f"{name}_{word}", graph)
        gates.append(_looked_up(entry, f"{name}_{word}", "gate_levels", gate_levels(), graph))
    inner = _shifted(graph.node("Mul", [gates[0], parts[5]], f"{name}_reset_h"), f"{name}_inner", 256, graph)
    entry = _entry(graph.node("Add", [parts[2], inner], f"{name}_new_sum"), f"{name}_new", graph)
    new = _looked_up(entry, f"{name}_new", "tanh_levels", tanh_levels(), graph)
    kept = graph.node("Mul", [gates[1], memory], f"{name}_kept")
    share = graph.node("Sub", [graph.number(256.0), gates[1]], f"{name}_share")
    held = graph.node("Mul", [new, graph.number(HELD)], f"{name}_held")
    taken = graph.node("Mul", [share, held], f"{name}_taken")
    after = _shifted(graph.node("Add", [kept, taken], f"{name}_both"), f"state_{name}_next", 256, graph)
    return _shifted(after, name, HELD, graph)


def _gates(x: str, name: str, weight: Floats, bias: Floats, scaling: tuple[Floats, Floats], graph: Graph) -> list[str]:
    """The reset, update and new halves of a gate's sum, each [N, H]."""
    r = _rescaled(_sums(x, name, weight, bias, graph), name, *scaling, graph)
    clipped = graph.node("Clip", [r, graph.number(-WIDEST_GATE), graph.number(WIDEST_GATE)], f"{name}_clipped")
    size = bias.size // 3
    return [graph.slice(clipped, g * size, (g + 1) * size, f"{name}_{g}") for g in range(3)]


def _entry(fine: str, name: str, graph: Graph) -> str:
    level = _shifted(fine, f"{name}_entry", FINE, graph)
    return graph.node("Clip", [level, graph.number(-LEVELS), graph.number(LEVELS)], f"{name}_clipped")


def _shifted(v: str, out: str, divisor: int, graph: Graph) -> str:
    """floor((v + divisor / 2) / divisor) of whole numbers below 2**23 whose divisor is a power of two: exact in float32."""
    lifted = graph.node("Add", [v, graph.number(divisor / 2)], f"{out}_lifted")
    scaled = graph.node("Mul", [lifted, graph.number(1 / divisor)], f"{out}_scaled")
    return graph.node("Floor", [scaled], out)
