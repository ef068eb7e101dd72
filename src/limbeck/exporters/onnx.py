"""ONNX: the whole policy as one graph, written node by node from the blueprint. No tracing, no external data.

Opset 17, IR 8, symbolic batch N. Inputs `obs` [N, O]; with memory `first` [N] and `state_*`; outputs `action` (executed),
`params` and `state_*_next`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import distributions, spaces, storage
from limbeck.contracts import Array, Artifact, Blueprint, Dense, Gru, Head, Policy
from limbeck.errors import missing_library
from limbeck.exporters.contract import Contract, action_count, check_exportable, describe, input_view
from limbeck.runtimes import onnx_session

OPSET, IR_VERSION = 17, 8


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.onnx."""
    check_exportable(blueprint)
    content = generate(blueprint)
    storage.write_bytes(folder / "policy.onnx", content)
    return Artifact("onnx", folder, ("policy.onnx",), len(content), compiled=True)


def load(folder: Path, contract: Contract) -> Policy:
    """Check and play the ONNX file of an artefact."""
    return onnx_session.load(folder / "policy.onnx", contract.spec, contract.head, contract.keys)


def missing() -> str:
    absent = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    return f'{" and ".join(absent)} not installed; run: pip install "limbeck[onnx]"' if absent else ""


def generate(blueprint: Blueprint) -> bytes:
    """The serialised model."""
    helper, onnx = _onnx()
    graph = _Graph(helper, onnx.numpy_helper)
    size = spaces.flat_size(blueprint.spec.observation_space, input_view(blueprint.view))
    graph.inputs.append(helper.make_tensor_value_info("obs", onnx.TensorProto.FLOAT, ["N", size]))
    if blueprint.view.history > 1 or any(isinstance(x, Gru) for x in blueprint.layers):
        graph.inputs.append(helper.make_tensor_value_info("first", onnx.TensorProto.BOOL, ["N"]))
        graph.node("Unsqueeze", ["first", graph.constant("axis_1", np.array([1], np.int64))], "first_column")
    x = _layers(blueprint, graph, _input(blueprint, graph))
    graph.node("Identity", [x], "params")
    _action(blueprint.head, graph)
    kind = onnx.TensorProto.INT64 if blueprint.head.discrete else onnx.TensorProto.FLOAT
    graph.outputs[:0] = [
        helper.make_tensor_value_info("action", kind, ["N", action_count(blueprint.head)]),
        helper.make_tensor_value_info("params", onnx.TensorProto.FLOAT, ["N", blueprint.head.width]),
    ]
    made = helper.make_graph(graph.nodes, "policy", graph.inputs, graph.outputs, graph.constants)
    model = helper.make_model(
        made, producer_name="limbeck", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    helper.set_model_props(model, _properties(blueprint))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _onnx() -> tuple[Any, Any]:
    try:
        import onnx
        from onnx import helper
    except ImportError as error:
        raise missing_library("onnx", "onnx", "exporting to ONNX") from error
    return helper, onnx


def _properties(blueprint: Blueprint) -> dict[str, str]:
    described = describe(blueprint, ("onnx",), {})
    kept = ("format", "limbeck", "name", "task", "head", "view", "input", "output", "memory")
    return {f"limbeck.{key}": json.dumps(storage.plain(described[key])) for key in kept}


# ---------------------------------------------------------------- the graph


@dataclass
class _Graph:
    """Nodes, constants, inputs and outputs while they are written."""

    helper: Any
    numpy_helper: Any
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def constant(self, name: str, values: Array) -> str:
        if name not in self.known:
            self.known.add(name)
            self.constants.append(self.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        single = np.float32(value)
        return self.constant(f"number_{single}", np.array(single))

    def node(self, op: str, inputs: list[str], output: str, **attributes: float) -> str:
        self.nodes.append(self.helper.make_node(op, inputs, [output], **attributes))
        return output

    def slice(self, x: str, begin: int, end: int, output: str) -> str:
        """Columns begin to end."""
        ends = [self.constant(f"at_{v}", np.array([v], np.int64)) for v in (begin, end, 1)]
        return self.node("Slice", [x, *ends], output)

    def memory(self, name: str, size: int, fresh: str, kind: int = 1) -> str:
        """The state `name` as this step sees it: `fresh` in rows where an episode begins."""
        self.inputs.append(self.helper.make_tensor_value_info(f"state_{name}", kind, ["N", size]))
        self.outputs.append(self.helper.make_tensor_value_info(f"state_{name}_next", kind, ["N", size]))
        return self.node("Where", ["first_column", fresh, f"state_{name}"], f"{name}_now")


def _input(blueprint: Blueprint, graph: _Graph) -> str:
    view, norm, x = blueprint.view, blueprint.normaliser, "obs"
    size = spaces.flat_size(blueprint.spec.observation_space, view)
    if view.indices is not None:
        x = graph.node("Gather", [x, graph.constant("indices", np.array(view.indices, np.int64))], "picked", axis=1)
    if norm is not None:
        x = graph.node("Sub", [x, graph.constant("mean", norm.mean.astype(np.float32))], "centred")
        x = graph.node("Div", [x, graph.constant("scale", norm.scale.astype(np.float32))], "scaled")
        if math.isfinite(norm.clip):
            x = graph.node("Clip", [x, graph.number(-norm.clip), graph.number(norm.clip)], "normalised")
    if view.history > 1:
        past = graph.node("Concat", [x] * (view.history - 1), "repeated", axis=1)
        past = graph.memory("history", (view.history - 1) * size, past)
        x = graph.node("Concat", [past, x], "window", axis=1)
        graph.slice(x, size, view.history * size, "state_history_next")
    return x


def _layers(blueprint: Blueprint, graph: _Graph, x: str) -> str:
    for i, layer in enumerate(blueprint.layers):
        if isinstance(layer, Dense):
            x = _gemm(graph, x, f"{i}", layer.weight, layer.bias)
            x = _activation(graph, x, layer.activation, f"active_{i}")
        else:
            x = _gru(graph, x, i, layer)
    return x


def _gemm(graph: _Graph, x: str, name: str, weight: Array, bias: Array) -> str:
    stored = [graph.constant(f"{k}_{name}", v.astype(np.float32)) for k, v in (("weight", weight), ("bias", bias))]
    return graph.node("Gemm", [x, *stored], f"sum_{name}")


def _gru(graph: _Graph, x: str, i: int, layer: Gru) -> str:
    """The cell written out: the equation stands at `contracts.Gru`."""
    name, size = f"gru{i}", layer.size
    hidden = graph.memory(name, size, graph.number(0.0))
    from_x = _gemm(graph, x, f"{name}_x", layer.weight_x, layer.bias_x)
    from_h = _gemm(graph, hidden, f"{name}_h", layer.weight_h, layer.bias_h)
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


def _activation(graph: _Graph, x: str, activation: str, out: str) -> str:
    match activation:
        case "identity":
            return x
        case "relu" | "tanh" | "sigmoid":
            return graph.node(activation.capitalize(), [x], out)
        case "elu":
            return graph.node("Elu", [x], out, alpha=1.0)
        case "leaky_relu":
            return graph.node("LeakyRelu", [x], out, alpha=0.01)
        case "hardtanh":
            return graph.node("Clip", [x, graph.number(-1.0), graph.number(1.0)], out)
        case "silu":
            return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{out}_gate")], out)
    scaled = graph.node("Mul", [x, graph.number(math.sqrt(0.5))], f"{out}_scaled")  # gelu, by the error function
    raised = graph.node("Add", [graph.node("Erf", [scaled], f"{out}_erf"), graph.number(1.0)], f"{out}_raised")
    return graph.node("Mul", [graph.node("Mul", [x, graph.number(0.5)], f"{out}_half"), raised], out)


def _action(head: Head, graph: _Graph) -> None:
    match head.kind:
        case "categorical" | "q" | "multicategorical":
            begins = np.cumsum([0, *head.sizes])
            groups = [
                graph.node("ArgMax", [graph.slice("params", int(b), int(b) + n, f"group_{k}")], f"best_{k}", axis=1)
                for k, (b, n) in enumerate(zip(begins, head.sizes, strict=False))
            ]
            best = graph.node("Concat", groups, "best", axis=1)
            graph.node("Add", [best, graph.constant("start", np.array(head.start or 0, np.int64))], "action")
        case "bernoulli":
            on = graph.node("Greater", ["params", graph.number(0.0)], "on")
            graph.node("Cast", [on], "action", to=7)
        case _:
            _continuous(head, graph)


def _continuous(head: Head, graph: _Graph) -> None:
    low, high = distributions.bounds(head)
    n = sum(head.sizes)
    x = "params" if head.width == n else graph.slice("params", 0, n, "mean_action")
    if head.kind in ("squashed", "tanh"):
        x = graph.node("Add", [graph.node("Tanh", [x], "squashed"), graph.number(1.0)], "raised")
        x = graph.node(
            "Mul", [graph.node("Mul", [x, graph.number(0.5)], "unit"), graph.constant("span", high - low)], "spread"
        )
        x = graph.node("Add", [x, graph.constant("low", low)], "placed")
    x = graph.node("Max", [x, graph.constant("low", low)], "above")
    graph.node("Min", [x, graph.constant("high", high)], "action")
