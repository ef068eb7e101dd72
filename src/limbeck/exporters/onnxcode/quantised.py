"""Layers in whole numbers as ONNX nodes: floats that hold whole numbers, exact on every runtime.

Weights and levels are small enough for float32 products to be exact in any order; rounding and requantising go through
float64, where nothing is rounded on the way. QLinearMatMul has no multiplier of its own bits and rounds halves to even.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import LEVELS, Quantise, Quantised, Readout
from limbeck.contracts.quantised import tanh_levels
from limbeck.exporters.onnxcode.graph import Graph

_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # element types of TensorProto


def write(x: str, place: str, layer: Quantise | Quantised | Readout, graph: Graph) -> str:
    """[N, outputs] levels, or real numbers behind the readout."""
    name = f"{layer.kind}{place}"
    match layer:
        case Quantise():
            return _quantise(x, name, layer, graph)
        case Readout():
            total = _sums(x, name, layer, graph)
            return graph.node("Mul", [total, graph.constant(f"scale_{name}", layer.scale)], name)
    total = _sums(x, name, layer, graph)
    step = np.ldexp(layer.multiplier.astype(np.float64), -layer.shift.astype(np.int64))
    wide = graph.node("Cast", [total], f"{name}_wide", to=_DOUBLE)
    r = _rounded(graph.node("Mul", [wide, graph.constant(f"step_{name}", step)], f"{name}_scaled"), name, graph)
    low = graph.number(0.0 if layer.activation == "relu" else -LEVELS)
    if layer.activation != "tanh":
        return graph.node("Clip", [r, low, graph.number(LEVELS)], name)
    r = graph.node("Clip", [r, low, graph.number(LEVELS)], f"{name}_clipped")
    place_of = graph.node("Add", [r, graph.number(LEVELS)], f"{name}_raised")
    index = graph.node("Cast", [place_of], f"{name}_index", to=_INT64)
    return graph.node("Gather", [graph.constant("tanh_levels", tanh_levels()), index], name)


def _sums(x: str, name: str, layer: Quantised | Readout, graph: Graph) -> str:
    """x @ weight + bias; the weights lie in the file as int8, the narrowest type of opset 17."""
    stored = graph.constant(f"weight_{name}", layer.weight.astype(np.int8))
    weight = graph.node("Cast", [stored], f"{name}_weight", to=_FLOAT)
    bias = graph.constant(f"bias_{name}", layer.bias.astype(np.float32))
    return graph.node("Gemm", [x, weight, bias], f"sum_{name}")


def _quantise(x: str, name: str, layer: Quantise, graph: Graph) -> str:
    centred = graph.node("Sub", [x, graph.constant(f"offset_{name}", layer.offset)], f"{name}_centred")
    v = graph.node("Mul", [centred, graph.constant(f"scale_{name}", layer.scale)], f"{name}_steps")
    missing = graph.node("IsNaN", [v], f"{name}_missing")
    known = graph.node("Where", [missing, graph.number(0.0), v], f"{name}_known")
    clipped = graph.node("Clip", [known, graph.number(-LEVELS), graph.number(LEVELS)], f"{name}_clipped")
    return _rounded(graph.node("Cast", [clipped], f"{name}_wide", to=_DOUBLE), name, graph)


def _rounded(v: str, name: str, graph: Graph) -> str:
    """floor(v + 1/2) of float64, as float32."""
    half = graph.constant("half_double", np.array(0.5, np.float64))
    down = graph.node("Floor", [graph.node("Add", [v, half], f"{name}_lifted")], f"{name}_down")
    return graph.node("Cast", [down], f"{name}_rounded", to=_FLOAT)
