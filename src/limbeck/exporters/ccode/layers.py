"""The layers of a policy as C statements: each reads one vector and writes another, nested ones included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from limbeck.contracts import (
    Array,
    Conv,
    Dense,
    Gru,
    Gsde,
    Layer,
    Lstm,
    Norm,
    Parallel,
    Pool,
    Quantise,
    Quantised,
    QuantisedConv,
    QuantisedGru,
    Readout,
    Shared,
    Sparse,
    Tree,
)
from limbeck.exporters.ccode import images as cimages
from limbeck.exporters.ccode import kernels as ckernels
from limbeck.exporters.ccode import quantised as cquantised
from limbeck.exporters.ccode import quantised_memory as cmemory
from limbeck.exporters.ccode import trees as ctrees
from limbeck.exporters.ccode.body import Body, Row, literal


def write(layers: Sequence[Layer], x: Row, to: Row, body: Body, place: str = "") -> None:
    """Statements for a chain of layers from `x` to `to`; `place` makes the names of nested layers unique."""
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        name = f"{place}{i}"
        if isinstance(layer, Gru | Lstm):
            y = _recurrent(name, layer, x, body)
        else:
            y = to if last else body.take(cquantised.held(layer))
            _write(name, layer, x, y, body)
        body.hand_back(x)
        x = y
    if x != to:  # nothing, or memory, at the end of the chain
        body.each(to.size, f"{to['i']} = {x['i']};")


def _write(name: str, layer: Layer, x: Row, y: Row, body: Body) -> None:
    match layer:
        case Dense():
            done = dense(name, layer.weight, layer.bias, x, y, body, layer.activation)
            _activate(layer.activation if not done else "identity", y, body)
        case Conv():
            _convolve(name, layer, x, y, body)
        case Pool():
            body.used.add(f"pool_{layer.method}")
            windows = _windows(name, layer, layer.window, layer.channels, body)
            body.add(f"@p_pool_{layer.method}(&{windows}, {x.at}, {y.at});")
        case Norm():
            body.used.add("norm")
            weight, bias = body.constant(f"weight_{name}", layer.weight), body.constant(f"bias_{name}", layer.bias)
            body.add(f"@p_norm({weight}, {bias}, {x.at}, {y.at}, {layer.outputs}, {literal(layer.epsilon)});")
            _activate(layer.activation, y, body)
        case Gsde():
            _explore(name, layer, x, y, body)
        case Parallel():
            _branch(name, layer, x, y, body)
        case Shared():
            _share(name, layer, x, y, body)
        case Tree():
            ctrees.tree(name, layer, x, y, body)
        case Sparse():
            ctrees.sparse(layer, x, y, body)
        case Quantise() | Quantised() | QuantisedConv() | Readout():
            cquantised.write(name, layer, x, y, body)
        case QuantisedGru():
            cmemory.write(name, layer, x, y, body)
        case _:
            raise TypeError(f"a {layer.kind} layer inside of another")


def dense(name: str, weight: Array, bias: Array, x: Row, y: Row, body: Body, activation: str = "") -> bool:
    """One product; True where its activation is already applied."""
    n_in, n_out = weight.shape
    wide, deep = n_out >= ckernels.WIDE, n_in >= ckernels.DEEP
    kind = "wide" if wide else "narrow" if deep else "small"
    body.used.add(kind)
    stored, offset = body.constant(f"weight_{name}", weight if wide else weight.T), body.constant(f"bias_{name}", bias)
    relu = f", {int(activation == 'relu')}" if wide else ""
    body.add(f"@p_dense_{kind}({stored}, {offset}, {x.at}, {y.at}, {n_in}, {n_out}{relu});")
    return wide and activation == "relu"


def _activate(activation: str, y: Row, body: Body) -> None:
    if activation != "identity":
        body.used.add(activation)
        body.add(f"@p_{activation}({y.at}, {y.size});")


# ---------------------------------------------------------------- images


def _convolve(name: str, layer: Conv, x: Row, y: Row, body: Body) -> None:
    body.used.add("conv")
    height, width, channels, out = layer.weight.shape
    windows = _windows(name, layer, (height, width), channels, body)
    weight, bias = body.constant(f"weight_{name}", layer.weight), body.constant(f"bias_{name}", layer.bias)
    window = body.take(2 * height * width * channels)
    body.add(
        f"@p_conv(&{windows}, {weight}, {bias}, {x.at}, {y.at}, {window.at}, {out}, {int(layer.layout == 'chw')});"
    )
    body.hand_back(window)
    _activate(layer.activation, y, body)


def _windows(name: str, layer: Conv | Pool, kernel: Sequence[int], channels: int, body: Body) -> str:
    words = cimages.numbers(layer, kernel, channels)
    body.constants.append(f"static const @p_windows @p_windows_{name} = {{{words}}};\n")
    body.constant_bytes += 4 * 11
    return f"@p_windows_{name}"


# ---------------------------------------------------------------- memory


def _recurrent(name: str, layer: Gru | Lstm, x: Row, body: Body) -> Row:
    """One step of a cell whose memory lies in the state; its hidden state is the output."""
    if isinstance(layer, Gru):
        hidden = Row(f"memory->gru{name}", layer.size)
        from_x, from_h = body.take(3 * layer.size), body.take(3 * layer.size)
        dense(f"x{name}", layer.weight_x, layer.bias_x, x, from_x, body)
        dense(f"h{name}", layer.weight_h, layer.bias_h, hidden, from_h, body)
        body.used.add("gru")
        body.add(f"@p_gru({from_x.at}, {from_h.at}, {hidden.at}, {layer.size});")
        body.hand_back(from_x)
        body.hand_back(from_h)
        return hidden
    hidden = Row(f"memory->lstm{name}_h", layer.size)
    both, gates = body.take(layer.inputs + layer.size), body.take(4 * layer.size)  # one product instead of two
    body.each(layer.inputs, f"{both['i']} = {x['i']};")
    body.each(layer.size, f"{both.part(layer.inputs, layer.size)['i']} = {hidden['i']};")
    dense(name, np.concatenate([layer.weight_x, layer.weight_h]), layer.bias, both, gates, body)
    body.used.add("lstm")
    body.add(f"@p_lstm({gates.at}, {hidden.at}, memory->lstm{name}_c, {layer.size});")
    body.hand_back(both)
    body.hand_back(gates)
    return hidden


# ---------------------------------------------------------------- exploration, branches, agents


def _explore(name: str, layer: Gsde, x: Row, y: Row, body: Body) -> None:
    n = layer.outputs // 2
    mean, log_std = y.part(0, n), y.part(n, n)
    dense(name, layer.weight, layer.bias, x, mean, body)
    if math.isfinite(layer.limit):
        body.used.add("clip")
        body.each(n, f"{mean['i']} = @p_clip({mean['i']}, {literal(-layer.limit)}, {literal(layer.limit)});")
    squares = body.take(layer.inputs)
    body.each(layer.inputs, f"{squares['i']} = {x['i']} * {x['i']};")
    dense(f"spread_{name}", layer.spread**2, np.full(n, layer.epsilon, np.float32), squares, log_std, body)
    body.hand_back(squares)
    _activate("half_log", log_std, body)


def _branch(name: str, layer: Parallel, x: Row, y: Row, body: Body) -> None:
    offset = 0
    for k, (branch, (begin, end)) in enumerate(zip(layer.branches, layer.spans, strict=True)):
        size = branch[-1].outputs if branch else end - begin
        write(branch, x.part(begin, end - begin), y.part(offset, size), body, f"{name}_{k}_")
        offset += size


def _share(name: str, layer: Shared, x: Row, y: Row, body: Body) -> None:
    each, out = layer.inputs // layer.count, layer.outputs // layer.count
    agent = f"k{body.depth}"
    body.add(f"for ({agent} = 0; {agent} < {layer.count}; {agent}++) {{")
    body.depth += 1
    write(layer.layers, x.part(f"{agent} * {each}", each), y.part(f"{agent} * {out}", out), body, f"{name}_")
    body.depth -= 1
    body.add("}")
