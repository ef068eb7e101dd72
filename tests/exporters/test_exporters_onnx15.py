"""The graph for Unity: nodes, ranks and types of opset 15, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import quantised_cases
from cases_export import CASES, observations, starts
from cases_layers import LAYER_CASES, WHOLE_CASES
from test_exporters_trees import CASES as TREES

from limbeck import exporters
from limbeck.errors import InputError
from limbeck.exporters import golden
from limbeck.exporters import onnx as newest
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.onnx_session import OnnxPolicy, session

ALL = {name: made for name, made in {**CASES, **LAYER_CASES, **TREES}.items() if name not in WHOLE_CASES}
WORDS = """Add ArgMax AveragePool Cast Clip Concat Conv Div Elu Erf Gather GatherElements Gemm Greater Identity LeakyRelu
LessOrEqual Log Max MaxPool Min Mul Pad ReduceMean Relu Reshape Sigmoid Slice Softplus Sqrt Sub Tanh Transpose Unsqueeze
Where"""  # plain ones: no loops, sequences, quantisation or functions
OPERATORS = set(WORDS.split())
TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}


@pytest.mark.parametrize("name", ALL)
def test_plain_nodes_of_opset_15_say_what_numpy_says(name: str) -> None:
    policy = ALL[name]
    content = newest.generate(policy, 15)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 15)]
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    tensors = [v.type.tensor_type for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)]
    assert max(len(t.shape.dim) for t in tensors) <= 4
    assert {t.elem_type for t in tensors} <= TYPES
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 20), starts(20))
    result = golden.compare(rows, OnnxPolicy(session(content, name), policy.spec, policy.head, policy.view))
    assert result.ok
    assert result.worst_error <= golden.TOLERANCE


def test_whole_numbers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert all("need float64" in exporters.unfit("onnx15", made) for made in WHOLE_CASES.values())
    policy = quantised_cases.policy((5, 6, 4))
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 8), np.arange(8) == 0)
    with pytest.raises(InputError, match="onnx15 of policy 'policy': its whole numbers need float64"):
        exporters.export(policy, tmp_path, ("onnx15",), rows)
    with pytest.raises(InputError, match=r"\. Drop onnx15 from the targets; c, numpy can hold it\.$"):
        exporters.export(policy, tmp_path, ("c", "onnx15", "numpy"), rows)
    assert not list(tmp_path.iterdir())


def test_it_is_a_target_of_its_own(tmp_path: Path) -> None:
    policy = LAYER_CASES["norm"]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 20), starts(20))
    exporters.export(policy, tmp_path, ("onnx", "onnx15"), rows)
    assert [(row.target, row.ok) for row in exporters.check(tmp_path)] == [("onnx", True), ("onnx15", True)]
    first, second = (onnx.load(tmp_path / name / "policy.onnx") for name in ("onnx", "onnx15"))
    assert (first.opset_import[0].version, second.opset_import[0].version) == (17, 15)
