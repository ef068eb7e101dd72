"""An ONNX graph while it is written: nodes, constants, inputs and outputs, and the few compounds every policy uses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.contracts import Array


@dataclass
class Graph:
    """Nodes, constants, inputs and outputs in the order they are needed; names are the caller's to keep apart."""

    helper: Any
    numpy_helper: Any
    opset: int = 17  # what nodes may be used
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

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(op, inputs, [output], **attributes))
        return output

    def slice(self, x: str, begin: int, end: int, output: str) -> str:
        """Columns begin to end."""
        ends = [self.constant(f"at_{v}", np.array([v], np.int64)) for v in (begin, end, 1)]
        return self.node("Slice", [x, *ends], output)

    def reshape(self, x: str, shape: tuple[int, ...], output: str) -> str:
        """Rows of another shape; a first 0 keeps their number, a first -1 finds it."""
        name = "shape_" + "_".join(str(v) for v in shape).replace("-", "m")
        return self.node("Reshape", [x, self.constant(name, np.array(shape, np.int64))], output)

    def memory(self, name: str, size: int, fresh: str, kind: int = 1) -> str:
        """The state `name` as this step sees it: `fresh` in rows where an episode begins."""
        self.inputs.append(self.helper.make_tensor_value_info(f"state_{name}", kind, ["N", size]))
        self.outputs.append(self.helper.make_tensor_value_info(f"state_{name}_next", kind, ["N", size]))
        return self.node("Where", ["first_column", fresh, f"state_{name}"], f"{name}_now")

    def gemm(self, x: str, name: str, weight: Array, bias: Array | str) -> str:
        """x @ weight + bias; `bias` may be rows that are already in the graph."""
        stored = self.constant(f"weight_{name}", weight.astype(np.float32))
        added = bias if isinstance(bias, str) else self.constant(f"bias_{name}", bias.astype(np.float32))
        return self.node("Gemm", [x, stored, added], f"sum_{name}")

    def activation(self, x: str, activation: str, out: str) -> str:
        match activation:
            case "identity":
                return x
            case "relu" | "tanh" | "sigmoid" | "softplus":
                return self.node(activation.capitalize(), [x], out)
            case "elu":
                return self.node("Elu", [x], out, alpha=1.0)
            case "leaky_relu":
                return self.node("LeakyRelu", [x], out, alpha=0.01)
            case "hardtanh":
                return self.node("Clip", [x, self.number(-1.0), self.number(1.0)], out)
            case "silu":
                return self.node("Mul", [x, self.node("Sigmoid", [x], f"{out}_gate")], out)
        scaled = self.node("Mul", [x, self.number(math.sqrt(0.5))], f"{out}_scaled")  # gelu, by the error function
        raised = self.node("Add", [self.node("Erf", [scaled], f"{out}_erf"), self.number(1.0)], f"{out}_raised")
        return self.node("Mul", [self.node("Mul", [x, self.number(0.5)], f"{out}_half"), raised], out)
