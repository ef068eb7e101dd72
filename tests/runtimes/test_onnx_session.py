"""What an ONNX file from outside may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases_export import CASES
from onnx import TensorProto, helper, numpy_helper

from limbeck.errors import InputError, UnsafeError
from limbeck.exporters import onnx as target
from limbeck.runtimes import onnx_session


def saved(model: Any, folder: Path) -> Path:
    path = folder / "policy.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def good() -> bytes:
    return target.generate(CASES["tiny"])


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret", "weights.bin"])
def test_external_data_is_refused(place: str, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(good())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 80)
    with pytest.raises(UnsafeError, match="in another file"):
        onnx_session.checked_bytes(saved(model, tmp_path))


def test_external_data_inside_a_constant_node_is_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(good())
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))
    with pytest.raises(UnsafeError, match="in another file"):
        onnx_session.checked_bytes(saved(model, tmp_path))


def test_foreign_operators_functions_and_loops_are_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(good())
    model.graph.node[0].domain = "com.example"
    with pytest.raises(UnsafeError, match=r"com\.example"):
        onnx_session.checked_bytes(saved(model, tmp_path))
    model = onnx.load_model_from_string(good())
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsafeError, match="outside the ONNX standard"):
        onnx_session.checked_bytes(saved(model, tmp_path))
    model = onnx.load_model_from_string(good())
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", [], ["looped"], body=body))
    with pytest.raises(UnsafeError, match="loop or branch"):
        onnx_session.checked_bytes(saved(model, tmp_path))


def test_every_prefix_and_garbage_are_input_errors(tmp_path: Path) -> None:
    content = good()
    rng = np.random.Generator(np.random.Philox(2))
    pieces = [content[:n] for n in range(0, len(content), 97)] + [rng.bytes(n) for n in (1, 50, 5000)]
    refused = 0
    for piece in pieces:
        try:
            onnx_session.load(saved(piece, tmp_path), CASES["tiny"].spec, CASES["tiny"].head)
        except (InputError, UnsafeError):
            refused += 1
    assert refused == len(pieces)
    with pytest.raises(InputError, match="cannot be read"):
        onnx_session.checked_bytes(tmp_path / "none.onnx")


def test_a_model_for_other_spaces_is_refused(tmp_path: Path) -> None:
    other = CASES["dict"]
    with pytest.raises(InputError, match="obs of 14"):
        onnx_session.load(saved(good(), tmp_path), other.spec, other.head)


def test_a_good_file_runs(tmp_path: Path) -> None:
    played = onnx_session.load(saved(good(), tmp_path), CASES["tiny"].spec, CASES["tiny"].head)
    output = played.on_flat(np.zeros((3, 5), np.float32), {}, np.ones(3, bool))
    assert output.params.shape == (3, 4)
    assert output.state == {}
