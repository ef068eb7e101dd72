"""Whole-number layers in numpy against Python's own integers, and what the equations promise at their limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import quantised_cases as cases
from cases_export import observations, starts
from cases_layers import SMALL, WHOLE_CASES, alike, drawn, policy
from gymnasium import spaces as S
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import blueprints, spaces
from limbeck.contracts import Blueprint, Gru, Layer, Parallel, Quantise, QuantisedConv, QuantisedGru, Shared
from limbeck.contracts.quantised import HELD, LARGEST_SUM, LEVELS, gate_levels, tanh_levels
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy, apply, layer_shapes
from limbeck.runtimes.whole import quantise, quantised_conv, quantised_gru_step

PLAIN = [name for name, made in WHOLE_CASES.items() if not isinstance(made.layers[0], Shared)]
MOST = HELD * LEVELS  # 16256, of a memory


def levels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype(np.float32)


def ints(row: np.ndarray) -> list[int]:
    return [int(v) for v in row]


# ---------------------------------------------------------------- whole policies


@pytest.mark.parametrize("name", PLAIN)
def test_numpy_says_what_python_integers_say(name: str) -> None:
    """One episode after the other, with the history and the memory of each."""
    made = replace(WHOLE_CASES[name], view=replace(WHOLE_CASES[name].view, history=1))
    size = made.layers[0].inputs
    made = replace(made, spec=replace(made.spec, observation_space=S.Box(-np.inf, np.inf, (size,), np.float32)))
    blueprints.check(made)
    played = NumpyPolicy(made)
    middle = float(made.layers[0].offset.mean())
    obs = (middle + np.random.default_rng(1).normal(size=(12, size)) * 40).astype(np.float32)
    state, memory = played.initial_state(1), dict[int, list[int]]()
    for row, first in zip(obs, starts(12, 5), strict=True):
        if first:
            memory.clear()
        output = played(row[None], state, np.array([first]))
        state = output.state
        wanted = cases.said(made, row, memory)
        assert output.params[0].tolist() == np.float32(wanted).tolist()
        for i, held in memory.items():
            assert state[f"quantised_gru{i}"][0].tolist() == held


# ---------------------------------------------------------------- from real numbers


def test_stretches_are_read_as_a_quantiser_of_all_numbers_reads_them() -> None:
    rng = np.random.default_rng(2)
    few = Quantise(rng.normal(size=3).astype(np.float32), rng.uniform(1, 90, 3).astype(np.float32), 20)
    all_of_them = Quantise(np.tile(few.offset, 20), np.tile(few.scale, 20))
    x = rng.normal(size=(50, 60)).astype(np.float32)
    x[0, 3], x[1, 4], x[2, 5] = np.nan, np.inf, -np.inf
    assert np.array_equal(quantise(few, x), quantise(all_of_them, x))
    assert (few.inputs, few.outputs, few.multiply_adds) == (60, 60, 60)
    assert [replace(few, times=n).problem() for n in (0, -1)] == [f"a quantiser of {n} stretches" for n in (0, -1)]


# ---------------------------------------------------------------- convolution


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    layout=st.sampled_from(["hwc", "chw"]),
    width=st.sampled_from(cases.WIDTHS),
    activation=st.sampled_from(cases.ACTIVATIONS),
)
def test_a_convolution_is_its_sums_place_by_place(
    seed: int, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], channels: tuple[int, int],
    layout: str, width: str, activation: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    kernel = (min(window[0], size[0]), min(window[1], size[1]), *channels)
    layer = cases.conv(rng, size, kernel, activation, width, stride=stride, layout=layout)
    assert layer.problem() == ""
    x = levels(rng, 2, layer.inputs)
    found = quantised_conv(layer, x)
    assert found.shape == (2, layer.outputs)
    assert found.tolist() == [cases.convolved(layer, ints(row)) for row in x]


def test_the_largest_sums_of_a_convolution_are_exact() -> None:
    """250 products of 127 x 127 and a bias that fills 22 bits, under the least and largest multipliers and shifts."""
    signs = np.float32([1, -1, 1, -1, 1, -1, 1, -1])
    weight = np.full((5, 10, 5, 8), 127, np.float32) * signs
    bias = signs * np.float32(LARGEST_SUM - 250 * 127 * 127)
    scaling = np.float32([255, 255, 255, 255, 1, 1, 255, 255]), np.float32([1, 1, 31, 31, 22, 22, 23, 23])
    layer = QuantisedConv(weight, bias, *scaling, (6, 10), activation="identity")
    assert layer.problem() == ""
    assert "22 bits" in replace(layer, bias=bias + signs).problem()
    x = np.float32([[127], [-127]]).repeat(layer.inputs, 1)
    sums = x[:, :250] @ layer.matrix + bias
    assert np.abs(sums).max() == LARGEST_SUM
    assert quantised_conv(layer, x).tolist() == [cases.convolved(layer, ints(row)) for row in x]


def test_what_a_convolution_cannot_be() -> None:
    layer = cases.conv(np.random.default_rng(0), (4, 5), (2, 3, 2, 3), "relu", "int4")
    assert (layer.out_size, layer.inputs, layer.outputs, layer.multiply_adds) == ((3, 3), 40, 27, 9 * 36)
    for change, words in (
        ({"size": (1, 5)}, "a window of"), ({"stride": (0, 1)}, "windows of"), ({"layout": "cwh"}, "layout 'cwh'"),
        ({"activation": "gelu"}, "'gelu'"), ({"width": "int3"}, "width 'int3'"), ({"width": "int2"}, "-2..1"),
        ({"multiplier": layer.multiplier * 0}, "1..255"), ({"weight": layer.weight[0]}, "kh, kw"),
    ):  # fmt: skip
        assert words in replace(layer, **change).problem()


def test_its_output_is_shown_as_a_picture() -> None:
    made = WHOLE_CASES["whole conv chw"]
    layer = made.layers[1]
    assert isinstance(layer, QuantisedConv)
    assert layer_shapes(made.layers)["layers.1"] == (9, *layer.out_size)
    obs = observations(made.spec.observation_space, 3)
    shown = NumpyPolicy(made, ("layers.1",))(obs, {}, np.ones(3, bool)).features["layers.1"]
    flat = spaces.flatten(obs, made.spec.observation_space, made.view)
    rows = apply(layer, apply(made.layers[0], flat)).reshape(3, *layer.out_size, 9)
    assert np.array_equal(shown, rows.transpose(0, 3, 1, 2))
    assert made.parameters == 2 + layer.weight.size + 3 * 9 + sum(
        a.size for tail in made.layers[2:] for a in vars(tail).values() if isinstance(a, np.ndarray)
    )


# ---------------------------------------------------------------- memory


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 5),
    inputs=st.integers(1, 9),
    width=st.sampled_from(cases.WIDTHS),
)
def test_a_memory_moves_as_the_contract_says(seed: int, size: int, inputs: int, width: str) -> None:
    rng = np.random.default_rng(seed)
    layer = cases.gru(rng, inputs, size, width)
    assert layer.problem() == ""
    x, memory = levels(rng, 4, inputs), rng.integers(-MOST, MOST + 1, (4, size)).astype(np.float32)
    memory[0], memory[1] = MOST, -MOST
    found = quantised_gru_step(layer, x, memory)
    assert found.dtype == np.float32
    assert found.tolist() == [cases.remembered(layer, ints(a), ints(m)) for a, m in zip(x, memory, strict=True)]
    assert np.abs(found).max() <= MOST


def gates(size: int, reset: int, update: int, new: int) -> QuantisedGru:
    """Gates that say the same whatever comes: biases in steps of their tables."""
    bias = np.repeat(np.float32([reset, update, new]), size) * 32  # (32 q + 1) >> 1 is 16 q
    ones, zeros = np.ones(3 * size, np.float32), np.zeros(3 * size, np.float32)
    weights = np.zeros((1, 3 * size), np.float32), np.zeros((size, 3 * size), np.float32)
    return QuantisedGru(*weights, bias, zeros, ones, ones, ones, ones)


@pytest.mark.parametrize("new", [-127, 5, 127])
def test_a_full_update_gate_keeps_a_memory_for_a_thousand_steps(new: int) -> None:
    kept = np.linspace(-MOST, MOST, 128).round().astype(np.float32)[None]
    layer, memory = gates(128, 3, 127, new), kept
    assert gate_levels()[127 + 127] == 256
    for _ in range(1000):
        memory = quantised_gru_step(layer, np.zeros((1, 1), np.float32), memory)
    assert np.array_equal(memory, kept)


def test_an_empty_update_gate_takes_the_new_level_whole() -> None:
    for new in (-127, -1, 0, 64, 127):
        start = np.float32([[MOST, -MOST, 1]])
        memory = quantised_gru_step(gates(3, 0, -127, new), np.zeros((1, 1), np.float32), start)
        assert memory.tolist() == [[128 * cases._tanh(new)] * 3]


def test_every_gate_new_level_and_memory_mix_exactly() -> None:
    """All 255 x 255 entries of both tables, with memories at and next to their ends: float32 against integers."""
    layer = gates(1, 0, 0, 0)
    layer.weight_x.resize((2, 3), refcheck=False)
    layer.weight_x[:] = [[0, 32, 0], [0, 0, 32]]
    q = np.arange(-127, 128)
    pairs = np.stack(np.meshgrid(q, q, indexing="ij"), -1).reshape(-1, 2)
    z, n = (
        np.array([f(v) for v in q.tolist()])[pairs[:, k] + 127] for k, f in enumerate((cases._sigmoid, cases._tanh))
    )
    for memory in (MOST, -MOST, MOST - 1, 1 - MOST, 63, -64, -65):
        wanted = (z * memory + (256 - z) * 128 * n + 128) >> 8
        found = quantised_gru_step(layer, pairs.astype(np.float32), np.full((len(pairs), 1), memory, np.float32))
        assert np.array_equal(found[:, 0], wanted)


def test_the_largest_sums_of_a_memory_are_exact() -> None:
    """Both halves at 2**22 - 1 under multipliers of 255: their halves are clipped to 32767, and 256 x 32767 is exact."""
    size = 250
    signs = np.tile(np.float32([1, -1]), 3 * size // 2)
    weight = np.full((size, 3 * size), 127, np.float32) * signs
    bias = signs * np.float32(LARGEST_SUM - size * 127 * 127)
    ones = np.ones(3 * size, np.float32)
    shift = np.resize(np.float32([1, 15, 16, 22, 23, 30, 31]), 3 * size)
    layer = QuantisedGru(weight, weight, bias, bias, 255 * ones, 255 * ones, shift, shift)
    assert layer.problem() == ""
    for sign in (1, -1):
        x, memory = np.full((1, size), sign * 127, np.float32), np.full((1, size), sign * MOST, np.float32)
        found = quantised_gru_step(layer, x, memory)
        assert found[0].tolist() == cases.remembered(layer, ints(x[0]), ints(memory[0]))


def test_gates_are_the_sigmoid_within_a_step() -> None:
    """The table of tanh is within 1/2 of 127 tanh(q / 32); times 128 / 127 and rounded again, a gate is within
    128 / 127 / 2 + 1/2 < 1.004 steps of 1/256 of sigmoid(q / 16) = (1 + tanh(q / 32)) / 2, and in fact within one."""
    table = gate_levels()
    assert table.tolist() == [cases._sigmoid(q) for q in range(-127, 128)]
    error = [abs(value - 256 / (1 + math.exp(-q / 16))) for q, value in zip(range(-127, 128), table, strict=True)]
    assert max(error) < 128 / 127 / 2 + 0.5
    assert max(error) <= 1
    assert (np.diff(table) >= 0).all()
    assert (table + table[::-1] == 256).all()
    assert (tanh_levels() + tanh_levels()[::-1] == 0).all()


# ---------------------------------------------------------------- where they may stand


def test_where_they_cannot_stand_is_said() -> None:
    rng = np.random.default_rng(0)
    small, hidden, memory = cases.quantise(rng, 6), cases.dense(rng, 6, 6, "relu", "int8"), cases.gru(rng, 6, 6, "int8")
    out, real = cases.readout(rng, 6, 4, "int8"), drawn(6, 6)
    other = Gru(*(np.zeros(s, np.float32) for s in ((6, 18), (6, 18), 18, 18)))
    wrong: list[tuple[tuple[Layer, ...], str]] = [
        ((memory, out), "quantised_gru layer without a quantise layer"),
        ((small, memory), "without a readout layer"),
        ((small, memory, real), "dense layer reads the levels"),
        ((small, other, out), "gru layer reads the levels"),
        ((Shared((small, memory, out), 1),), "shared network with memory"),
        ((Parallel(((small, memory, out),), ((0, 6),), 6),), "branch with memory"),
        ((Parallel(((small, hidden),), ((0, 6),), 6), out), "a branch of quantised layers without a readout layer"),
        ((small, Parallel(((hidden,), ()), ((0, 6), (0, 6)), 6), out), "a branch of quantised layers without a readout"),
        ((small, Parallel(((), ()), ((0, 3), (3, 6)), 6), out), "a parallel layer reads the levels"),
    ]  # fmt: skip
    for layers, words in wrong:
        with pytest.raises(InputError, match=words):
            blueprints.check(policy_of(layers))
    blueprints.check(policy_of((small, memory, out)))
    assert "1..31" in replace(memory, shift_h=memory.shift_h * 0).problem()
    assert "22 bits" in replace(memory, bias_h=memory.bias_h + 2.0**22).problem()
    assert "int3" in replace(memory, width="int3").problem()


def policy_of(layers: tuple[Layer, ...]) -> Blueprint:
    return replace(policy(SMALL, alike(6, 1), cases.readout(np.random.default_rng(0), 6, 4, "int8")), layers=layers)


def test_a_row_too_long_is_refused() -> None:
    """All windows of a picture side by side count: here 2**20 of 5 x 5 x 3 numbers."""
    rng, space = np.random.default_rng(0), S.Box(0, 1, (1028, 1028, 3), np.int8)
    first = cases.conv(rng, (1028, 1028), (5, 5, 3, 1), "relu", "ternary")
    second = cases.conv(rng, first.out_size, (5, 5, 1, 1), "relu", "ternary", stride=(1000, 1000))
    layers = (alike(3, 1028**2), first, second, cases.readout(rng, second.outputs, 4, "int8"))
    made = policy(space, *layers)
    assert first.outputs < blueprints.LARGEST < 2**20 * 75
    with pytest.raises(InputError, match="needs a row of 78,643,200 numbers"):
        blueprints.check(made)
