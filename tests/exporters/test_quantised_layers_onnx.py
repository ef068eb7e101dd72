"""Convolutions and memories in whole numbers as ONNX: the bits of numpy, whatever the engine reorders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import quantised_cases as cases
from cases_export import observations, starts
from cases_layers import SMALL, alike, policy
from cases_quantised_layers import SOME
from gymnasium import spaces as S

from limbeck import spaces
from limbeck.contracts import Blueprint, Dense, QuantisedConv, QuantisedGru, Shared
from limbeck.contracts.quantised import LARGEST_SUM
from limbeck.exporters import onnx as target
from limbeck.exporters import onnx15, onnx_int8, sb3
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.onnx_session import OnnxPolicy, session

BATCH = 6


def agree(made: Blueprint, runs: list[OnnxPolicy], flat: np.ndarray, first: np.ndarray) -> None:
    """[T, B, I] rows and [T, B] starts: params and every memory are numpy's to the last bit."""
    reference = NumpyPolicy(made)
    state, states = reference.initial_state(flat.shape[1]), [run.initial_state(flat.shape[1]) for run in runs]
    for rows, begins in zip(flat, first, strict=True):
        wanted = reference.on_flat(rows, state, begins)
        state = wanted.state
        for k, run in enumerate(runs):
            found = run.on_flat(rows, states[k], begins)
            states[k] = found.state
            assert np.array_equal(found.params, wanted.params)
            assert found.state.keys() == {f"state_{name}" for name in state}
            assert all(
                np.array_equal(found.state[f"state_{name}"], held, equal_nan=True) for name, held in state.items()
            )


def rows(made: Blueprint, steps: int, batch: int = BATCH) -> np.ndarray:
    space = made.spec.observation_space
    flat = spaces.input_rows(observations(space, steps * batch), space, made.view)
    return flat.reshape(steps, batch, -1)


@pytest.mark.parametrize("name", SOME)
def test_the_graph_gives_the_same_bits_in_every_row_and_step(name: str) -> None:
    """With and without the engine's rewriting of graphs; NaN and infinite observations included."""
    import onnxruntime

    made = SOME[name]
    content = target.generate(made)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    runs = [OnnxPolicy(run, made.spec, made.head, made.view) for run in (session(content, name), plain)]
    flat = rows(made, 12)
    flat[3, 0, 0], flat[4, 1, 1], flat[5, 2, -1] = np.nan, np.inf, -np.inf
    agree(made, runs, flat, np.stack([starts(12, 4 + k) for k in range(BATCH)], 1))
    agree(made, runs, rows(made, 2, 1), np.ones((2, 1), bool))
    agree(made, runs[:1], rows(made, 2, 17), np.ones((2, 17), bool))


@pytest.mark.parametrize("name", SOME)
def test_no_engine_is_asked_for_a_convolution(name: str) -> None:
    """`Conv` may be computed by Winograd's algorithm, whose sixths are no floats; and weights lie in bytes."""
    model = onnx.load_model_from_string(target.generate(SOME[name]))
    assert not {"Conv", "Tanh", "Sigmoid"} & {node.op_type for node in model.graph.node}
    for tensor in model.graph.initializer:
        if tensor.name.startswith("weight_"):
            assert tensor.data_type == onnx.TensorProto.INT8


def test_a_memory_goes_in_and_out_by_name() -> None:
    graph = onnx.load_model_from_string(target.generate(SOME["whole gru first and last"])).graph
    states = ["state_history", "state_quantised_gru1", "state_quantised_gru2"]
    assert [i.name for i in graph.input] == ["obs", "first", *states]
    assert [o.name for o in graph.output] == ["action", "params", *(f"{name}_next" for name in states)]


def test_the_largest_sums_are_exact() -> None:
    """22 bits full in every product, under the largest multiplier and the extreme shifts."""
    rng = np.random.default_rng(0)
    signs = np.float32([1, -1, 1, -1, 1, -1])
    weight = np.full((5, 10, 5, 6), 127, np.float32) * signs
    bias = signs * np.float32(LARGEST_SUM - 250 * 127 * 127)
    shift = np.float32([1, 1, 31, 31, 23, 23])
    conv = QuantisedConv(weight, bias, np.full(6, 255, np.float32), shift, (5, 10), activation="identity")
    full = [np.tile(a, (250, 2)) if a.ndim == 2 else np.tile(a, 2) for a in (weight[:1, 0, 0], bias)]
    gates = [np.tile(a, 2) for a in (conv.multiplier, shift)]
    recurrent = cases.gru(rng, 250, 4, "int8")
    recurrent = replace(recurrent, weight_x=full[0], bias_x=full[1], multiplier_x=gates[0], shift_x=gates[1])
    space, both = S.Box(-9, 9, (250,), np.float32), (np.full((1, 3, 250), v, np.float32) for v in (9, -9))
    flat, first = np.concatenate([*both], 1), np.zeros((1, 6), bool)
    flat[:, 4:, ::3] = 0.25
    for layer in (conv, recurrent):
        made = policy(space, alike(1, 250, 0, 127), layer, cases.readout(rng, layer.outputs, 4, "int8"))
        run = OnnxPolicy(session(target.generate(made), "extreme"), made.spec, made.head, made.view)
        agree(made, [run], flat, first)


def test_the_file_is_nearly_as_small_as_its_numbers() -> None:
    """Windows are found by two short lists of places, and ranges of pixels lie in it once."""
    rng = np.random.default_rng(0)
    first = cases.conv(rng, (84, 84), (8, 8, 4, 16), "relu", "int8", stride=(4, 4), layout="chw")
    second = cases.conv(rng, first.out_size, (4, 4, 16, 32), "relu", "int8", stride=(2, 2))
    layers = (alike(1, 84 * 84 * 4), first, second, cases.readout(rng, second.outputs, 4, "int8"))
    made = policy(S.Box(0, 255, (4, 84, 84), np.uint8), *layers)
    assert len(target.generate(made)) < made.parameters + 25_000
    run = OnnxPolicy(session(target.generate(made), "large"), made.spec, made.head, made.view)
    agree(made, [run], rows(made, 1, 2), np.ones((1, 2), bool))


def test_targets_that_cannot_take_them_say_so() -> None:
    conv, memory = SOME["whole conv hwc"], SOME["whole gru"]
    agents = SOME["whole agents"]
    assert isinstance(agents.layers[0], Shared)
    for made in (conv, memory, agents):
        assert "need float64" in onnx15.unfit(made)
        assert "in whole numbers already" in onnx_int8.unfit(made)
        assert "no policy like this student" in sb3.unfit(made)
    real = policy(SMALL, Dense(np.eye(6, dtype=np.float32), np.zeros(6, np.float32)))
    assert onnx15.unfit(real) == onnx_int8.unfit(real) == sb3.unfit(real) == ""
    assert isinstance(memory.layers[2], QuantisedGru)
