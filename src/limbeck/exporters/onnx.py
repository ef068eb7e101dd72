"""ONNX: the whole policy as one graph, written node by node from the blueprint. No tracing, no external data.

Opset 17 (`onnx15`: 15), IR 8, symbolic batch N. Inputs `obs` [N, I], the flat observation and the action mask; with memory `first` [N] and `state_*`; outputs `action` (executed),
`params` and `state_*_next`.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import distributions, spaces, storage
from limbeck.contracts import Array, Artifact, Blueprint, Head, Policy, memory_of
from limbeck.errors import missing_library
from limbeck.exporters.contract import Contract, action_count, check_exportable, describe, input_view
from limbeck.exporters.onnxcode import layers as onnxlayers
from limbeck.exporters.onnxcode.graph import Graph
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
    return onnx_session.load(folder / "policy.onnx", contract.spec, contract.head, contract.view)


def missing() -> str:
    absent = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    return f'{" and ".join(absent)} not installed; run: pip install "limbeck[onnx]"' if absent else ""


def generate(blueprint: Blueprint, opset: int = OPSET) -> bytes:
    """The serialised model, in the nodes of opset 17 or 15."""
    helper, onnx = _onnx()
    graph = Graph(helper, onnx.numpy_helper, opset)
    size = spaces.input_size(blueprint.spec.observation_space, blueprint.view)
    graph.inputs.append(helper.make_tensor_value_info("obs", onnx.TensorProto.FLOAT, ["N", size]))
    if blueprint.view.history > 1 or any(memory_of(blueprint.layers)):
        graph.inputs.append(helper.make_tensor_value_info("first", onnx.TensorProto.BOOL, ["N"]))
        graph.node("Unsqueeze", ["first", graph.constant("axis_1", np.array([1], np.int64))], "first_column")
    _params(blueprint, onnxlayers.write(blueprint.layers, _input(blueprint, graph), graph), graph)
    _action(blueprint.head, graph)
    kind = onnx.TensorProto.INT64 if blueprint.head.discrete else onnx.TensorProto.FLOAT
    graph.outputs[:0] = [
        helper.make_tensor_value_info("action", kind, ["N", action_count(blueprint.head)]),
        helper.make_tensor_value_info("params", onnx.TensorProto.FLOAT, ["N", blueprint.head.width]),
    ]
    made = helper.make_graph(graph.nodes, "policy", graph.inputs, graph.outputs, graph.constants)
    model = helper.make_model(
        made, producer_name="limbeck", opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
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


# ---------------------------------------------------------------- from the input to the action


def _input(blueprint: Blueprint, graph: Graph) -> str:
    view, norm, x, space = blueprint.view, blueprint.normaliser, "obs", blueprint.spec.observation_space
    size = spaces.flat_size(space, view)
    if view.indices is not None:
        x = graph.node("Gather", [x, graph.constant("indices", np.array(view.indices, np.int64))], "picked", axis=1)
    elif view.mask is not None:
        x = graph.slice(x, 0, size, "unmasked")
    if norm is not None:
        x = graph.node("Sub", [x, graph.constant("mean", _statistics(norm.mean))], "centred")
        x = graph.node("Div", [x, graph.constant("scale", _statistics(norm.scale))], "scaled")
        if math.isfinite(norm.clip):
            x = graph.node("Clip", [x, graph.number(-norm.clip), graph.number(norm.clip)], "normalised")
    if view.history > 1:
        past = graph.number(0.0)
        if view.padding == "first":
            past = graph.node("Concat", [x] * (view.history - 1), "repeated", axis=1)
        past = graph.memory("history", (view.history - 1) * size, past)
        x = graph.node("Concat", [past, x], "window", axis=1)
        graph.slice(x, size, view.history * size, "state_history_next")
    return x


def _statistics(values: Array) -> Array:
    """Statistics that are all the same, as those of images, are one number."""
    return (values[:1] if (values == values[0]).all() else values).astype(np.float32)


def _params(blueprint: Blueprint, said: str, graph: Graph) -> None:
    """The head's numbers, those of forbidden actions far below all others."""
    view, space = blueprint.view, blueprint.spec.observation_space
    if view.mask is None:
        graph.node("Identity", [said], "params")
        return
    begin = spaces.flat_size(space, input_view(view))
    mask = graph.slice("obs", begin, begin + blueprint.head.width, "mask")
    allowed = graph.node("Greater", [mask, graph.number(0.0)], "allowed")
    graph.node("Where", [allowed, said, graph.number(distributions.FORBIDDEN)], "params")


def _action(head: Head, graph: Graph) -> None:
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


def _continuous(head: Head, graph: Graph) -> None:
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
