"""ONNX models made by hand for the tests: the observation and answer ports of other people's exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADER = '<ir_version: 9, opset_import: ["": 17]>'


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from the ONNX text format, with initialisers by name."""
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(location: str, **extra: str) -> onnx.ModelProto:
    """logits = obs W + b, with b read from another file."""
    model = parsed("g (float[n,4] obs) => (float[n,2] logits) { h = MatMul(obs, w) logits = Add(h, b) }", w=W)
    bias = model.graph.initializer.add(
        name="b", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **extra}.items():
        bias.external_data.add(key=key, value=value)
    return model


def looping(trips: int) -> onnx.ModelProto:
    """A loop around the logits."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["h"]),
        helper.make_node("Loop", ["trips", "yes", "h"], ["logits"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(W, "w"),
            numpy_helper.from_array(np.array(trips, np.int64), "trips"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


W = np.array([[1, -1], [2, 0], [0, 3], [-1, 1]], np.float32)
