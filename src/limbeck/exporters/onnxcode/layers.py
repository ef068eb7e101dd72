"""The layers of a policy as ONNX nodes. Rows are flat between layers, and stay images where one image layer follows
another: ONNX wants [N, channels, height, width], Limbeck's rows are height x width x channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.contracts import (
    Conv,
    Gru,
    Gsde,
    Layer,
    Lstm,
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
from limbeck.contracts import Dense as DenseLayer
from limbeck.contracts import Norm as NormLayer
from limbeck.exporters.onnxcode import quantised as onnxquantised
from limbeck.exporters.onnxcode import trees as onnxtrees
from limbeck.exporters.onnxcode.graph import Graph


@dataclass
class _Rows:
    """A batch as the graph holds it: flat, or as images until somebody asks for flat rows."""

    name: str
    flat: str = ""
    image: str = ""
    size: tuple[int, int, int] = (0, 0, 0)  # channels, height, width of `image`

    def flattened(self, graph: Graph) -> str:
        if not self.flat:
            last = graph.node("Transpose", [self.image], f"{self.name}_hwc", perm=[0, 2, 3, 1])
            self.flat = graph.reshape(last, (0, math.prod(self.size)), f"{self.name}_flat")
        return self.flat

    def pictured(self, graph: Graph, size: tuple[int, int, int], layout: str, name: str) -> str:
        """As [N, channels, height, width] for the layer `name`."""
        if layout == "hwc" and self.image and self.size == size:
            return self.image
        channels, height, width = size
        if layout == "chw":
            return graph.reshape(self.flattened(graph), (0, channels, height, width), f"{name}_in")
        last = graph.reshape(self.flattened(graph), (0, height, width, channels), f"{name}_in_hwc")
        return graph.node("Transpose", [last], f"{name}_in", perm=[0, 3, 1, 2])


def write(layers: Sequence[Layer], x: str, graph: Graph, place: str = "") -> str:
    """Nodes for a chain of layers on flat rows `x`; the name of the flat rows it gives."""
    rows = _Rows(x, x)
    for i, layer in enumerate(layers):
        rows = _layer(f"{place}{i}", layer, rows, graph)
    return rows.flattened(graph)


def inner(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Every layer, those inside of others included."""
    for layer in layers:
        yield layer
        chains = (layer.layers,) if isinstance(layer, Shared) else ()
        for chain in layer.branches if isinstance(layer, Parallel) else chains:
            yield from inner(chain)


def _layer(place: str, layer: Layer, x: _Rows, graph: Graph) -> _Rows:
    match layer:
        case Conv():
            return _convolve(f"conv{place}", layer, x, graph)
        case Pool():
            return _pool(f"pool{place}", layer, x, graph)
    made = _flat_layer(place, layer, x.flattened(graph), graph)
    return _Rows(made, made)


def _flat_layer(place: str, layer: Layer, x: str, graph: Graph) -> str:
    match layer:
        case DenseLayer():
            y = graph.gemm(x, place, layer.weight, layer.bias)
            return graph.activation(y, layer.activation, f"active_{place}")
        case NormLayer():
            return graph.activation(_norm(x, place, layer, graph), layer.activation, f"active_{place}")
        case Gru():
            return _gru(x, f"gru{place}", layer, graph)
        case Lstm():
            return _lstm(x, f"lstm{place}", layer, graph)
        case Gsde():
            return _explore(x, f"gsde{place}", layer, graph)
        case Parallel():
            return _branch(x, f"parallel{place}", layer, graph)
        case Tree():
            return onnxtrees.tree(x, f"tree{place}", layer, graph)
        case Sparse():
            return onnxtrees.sparse(x, f"sparse{place}", layer, graph)
        case Quantise() | Quantised() | QuantisedConv() | QuantisedGru() | Readout():
            return onnxquantised.write(x, place, layer, graph)
        case Shared():
            apart = graph.reshape(x, (-1, layer.inputs // layer.count), f"shared{place}_apart")
            return graph.reshape(
                write(layer.layers, apart, graph, f"{place}_"), (-1, layer.outputs), f"shared{place}_together"
            )
    raise TypeError(f"a {layer.kind} layer has no ONNX form")


def _norm(x: str, place: str, layer: NormLayer, graph: Graph) -> str:
    """One node, or written out where the opset is older than LayerNormalization."""
    weight, bias = (graph.constant(f"{k}_{place}", v) for k, v in (("weight", layer.weight), ("bias", layer.bias)))
    if graph.opset >= 17:
        return graph.node("LayerNormalization", [x, weight, bias], f"norm_{place}", axis=-1, epsilon=layer.epsilon)
    mean = graph.node("ReduceMean", [x], f"mean_{place}", axes=[1], keepdims=1)
    centred = graph.node("Sub", [x, mean], f"centred_{place}")
    squares = graph.node("Mul", [centred, centred], f"squares_{place}")
    variance = graph.node("ReduceMean", [squares], f"variance_{place}", axes=[1], keepdims=1)
    raised = graph.node("Add", [variance, graph.number(layer.epsilon)], f"raised_{place}")
    unit = graph.node("Div", [centred, graph.node("Sqrt", [raised], f"spread_{place}")], f"unit_{place}")
    return graph.node("Add", [graph.node("Mul", [unit, weight], f"stretched_{place}"), bias], f"norm_{place}")


# ---------------------------------------------------------------- images


def _convolve(name: str, layer: Conv, x: _Rows, graph: Graph) -> _Rows:
    channels = layer.weight.shape[2]
    image = x.pictured(graph, (channels, *layer.size), layer.layout, name)
    stored = graph.constant(f"weight_{name}", layer.weight.astype(np.float32).transpose(3, 2, 0, 1))
    bias = graph.constant(f"bias_{name}", layer.bias.astype(np.float32))
    kernel = [int(v) for v in layer.weight.shape[:2]]
    y = graph.node("Conv", [image, stored, bias], f"sum_{name}", kernel_shape=kernel, **_places(layer))
    y = graph.activation(y, layer.activation, f"active_{name}")
    return _Rows(name, image=y, size=(layer.weight.shape[3], *layer.out_size))


def _pool(name: str, layer: Pool, x: _Rows, graph: Graph) -> _Rows:
    image = x.pictured(graph, (layer.channels, *layer.size), "hwc", name)
    op = "MaxPool" if layer.method == "max" else "AveragePool"  # padded places never count in either
    y = graph.node(op, [image], f"out_{name}", kernel_shape=list(layer.window), **_places(layer))
    return _Rows(name, image=y, size=(layer.channels, *layer.out_size))


def _places(layer: Conv | Pool) -> dict[str, list[int]]:
    top, bottom, left, right = layer.padding
    return {"strides": list(layer.stride), "pads": [top, left, bottom, right]}


# ---------------------------------------------------------------- memory


def _gru(x: str, name: str, layer: Gru, graph: Graph) -> str:
    """The cell written out: the equation stands at `contracts.Gru`."""
    size = layer.size
    hidden = graph.memory(name, size, graph.number(0.0))
    from_x = graph.gemm(x, f"{name}_x", layer.weight_x, layer.bias_x)
    from_h = graph.gemm(hidden, f"{name}_h", layer.weight_h, layer.bias_h)
    parts = [graph.slice(s, g * size, (g + 1) * size, f"{s}_{g}") for s in (from_x, from_h) for g in range(3)]
    gates = []
    for gate, word in enumerate(("reset", "update")):
        both = graph.node("Add", [parts[gate], parts[3 + gate]], f"{name}_{word}_sum")
        gates.append(graph.node("Sigmoid", [both], f"{name}_{word}"))
    inner = graph.node("Mul", [gates[0], parts[5]], f"{name}_inner")
    new = graph.node("Tanh", [graph.node("Add", [parts[2], inner], f"{name}_new_sum")], f"{name}_new")
    # (1 - z) n + z h, in the order of every other runtime
    kept = graph.node("Mul", [gates[1], hidden], f"{name}_kept")
    share = graph.node("Sub", [graph.number(1.0), gates[1]], f"{name}_share")
    taken = graph.node("Mul", [share, new], f"{name}_taken")
    return graph.node("Add", [taken, kept], f"state_{name}_next")


def _lstm(x: str, name: str, layer: Lstm, graph: Graph) -> str:
    """The cell written out: the equation stands at `contracts.Lstm`."""
    size = layer.size
    hidden, cell = (graph.memory(f"{name}_{k}", size, graph.number(0.0)) for k in "hc")
    from_x = graph.gemm(x, f"{name}_x", layer.weight_x, layer.bias)
    both = graph.gemm(hidden, f"{name}_h", layer.weight_h, from_x)
    words = (("Sigmoid", "enter"), ("Sigmoid", "keep"), ("Tanh", "new"), ("Sigmoid", "leave"))
    enter, keep, new, leave = (
        graph.node(op, [graph.slice(both, g * size, (g + 1) * size, f"{both}_{g}")], f"{name}_{word}")
        for g, (op, word) in enumerate(words)
    )
    kept = graph.node("Mul", [keep, cell], f"{name}_kept")
    taken = graph.node("Mul", [enter, new], f"{name}_taken")
    after = graph.node("Add", [kept, taken], f"state_{name}_c_next")
    return graph.node("Mul", [leave, graph.node("Tanh", [after], f"{name}_shown")], f"state_{name}_h_next")


# ---------------------------------------------------------------- exploration, branches


def _explore(x: str, name: str, layer: Gsde, graph: Graph) -> str:
    mean = graph.gemm(x, f"{name}_mean", layer.weight, layer.bias)
    if math.isfinite(layer.limit):
        mean = graph.node("Clip", [mean, graph.number(-layer.limit), graph.number(layer.limit)], f"{name}_clipped")
    squares = graph.node("Mul", [x, x], f"{name}_squares")
    epsilon = np.full(layer.outputs // 2, layer.epsilon, np.float32)
    variance = graph.gemm(squares, f"{name}_variance", layer.spread**2, epsilon)
    log_std = graph.node("Mul", [graph.node("Log", [variance], f"{name}_log"), graph.number(0.5)], f"{name}_log_std")
    return graph.node("Concat", [mean, log_std], name, axis=1)


def _branch(x: str, name: str, layer: Parallel, graph: Graph) -> str:
    parts = [
        write(branch, graph.slice(x, begin, end, f"{name}_{k}"), graph, f"{name.removeprefix('parallel')}_{k}_")
        for k, (branch, (begin, end)) in enumerate(zip(layer.branches, layer.spans, strict=True))
    ]
    return graph.node("Concat", parts, name, axis=1)
