"""The ONNX file: what it declares, that N is free, and that the graph itself acts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases_export import CASES, observations, starts
from cases_layers import LAYER_CASES

from limbeck import distributions, spaces
from limbeck.exporters import onnx as target
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.onnx_session import OnnxPolicy, session

ALL = {**CASES, **LAYER_CASES}


def test_versions_metadata_and_weights_inside(tmp_path: Path) -> None:
    artifact = target.export(CASES["squashed"], tmp_path)
    model = onnx.load(tmp_path / "policy.onnx", load_external_data=False)
    assert model.opset_import[0].version == 17
    assert model.ir_version == 8
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert artifact.size_bytes == (tmp_path / "policy.onnx").stat().st_size
    said = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert said["limbeck.name"] == "policy"
    assert said["limbeck.output"]["squash"] == "tanh"
    assert [i.name for i in model.graph.input] == ["obs"]
    assert [o.name for o in model.graph.output] == ["action", "params"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_memory_is_named_in_and_out(tmp_path: Path) -> None:
    target.export(CASES["gru with history"], tmp_path)
    graph = onnx.load(tmp_path / "policy.onnx").graph
    assert [i.name for i in graph.input] == ["obs", "first", "state_history", "state_gru1"]
    assert [o.name for o in graph.output] == ["action", "params", "state_history_next", "state_gru1_next"]


@pytest.mark.parametrize(
    "name", ["gru", "history of picked", "multicategorical", "bernoulli", "tanh matrix", "dict view", *LAYER_CASES]
)
@pytest.mark.parametrize("batch", [1, 7, 16])
def test_any_batch_and_the_graphs_own_action(name: str, batch: int) -> None:
    policy = ALL[name]
    space = policy.spec.observation_space
    reference, run = NumpyPolicy(policy), session(target.generate(policy), name)
    played = OnnxPolicy(run, policy.spec, policy.head, policy.view)
    state, other = played.initial_state(batch), reference.initial_state(batch)
    for step in range(4):
        obs, first = observations(space, batch, seed=step), starts(batch, 2) if step == 2 else np.full(batch, step == 0)
        mine, theirs = played(obs, state, first), reference(obs, other, first)
        state, other = mine.state, theirs.state
        np.testing.assert_allclose(mine.params, theirs.params, rtol=1e-5, atol=1e-5)
        wanted = distributions.act(policy.head, mine.params)
        assert mine.action.shape == wanted.shape
        np.testing.assert_allclose(mine.action, wanted, rtol=1e-6, atol=1e-6)
    assert run.get_inputs()[0].shape == ["N", spaces.input_size(space, policy.view)]


@pytest.mark.parametrize("name", LAYER_CASES)
def test_names_are_unique_and_images_are_not_turned_back_and_forth(name: str) -> None:
    graph = onnx.load_model_from_string(target.generate(LAYER_CASES[name])).graph
    made = [out for node in graph.node for out in node.output] + [t.name for t in graph.initializer]
    made += [i.name for i in graph.input]
    assert len(made) == len(set(made))
    if name in ("conv hwc", "conv chw", "conv of frames"):  # in unless chw, and out again
        assert sum(node.op_type == "Transpose" for node in graph.node) == (2 if name == "conv hwc" else 1)


def test_hostile_names_are_only_metadata(tmp_path: Path) -> None:
    from dataclasses import replace

    hostile = replace(CASES["tiny"], name="</script>\n\x00../../x")
    target.export(hostile, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["policy.onnx"]
    model = onnx.load(tmp_path / "policy.onnx")
    assert model.graph.name == "policy"
