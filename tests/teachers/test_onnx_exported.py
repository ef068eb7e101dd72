"""Anybody can write Limbeck's description into a model: such a model is tried and checked like every other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_cases import parsed, written

from limbeck import teachers
from limbeck.contracts import Blueprint, Dense, Gru, Head, Spec, View
from limbeck.errors import InputError
from limbeck.exporters import onnx as exporter
from limbeck.spaces import head_for
from limbeck.teachers import onnx_playing

CART = Spec(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Discrete(2))
REACH = Spec(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Box(-2, 2, (3,)))
W = np.array([[1, -1], [2, 0], [0, 3], [-1, 1]], np.float32)
HEAD = "(float[n,4] obs) => (int64[n,1] action, float[n,2] params) "
PICK = "best = ArgMax<axis=1>(params) action = Identity(best)"


def exported(path: Path, spec: Spec = CART, head: Head | None = None, memory: bool = False, **view: int) -> Path:
    """An honest export of ours."""
    head, rng = head or head_for(spec.action_space), np.random.default_rng(0)
    size = 4 * view.get("history", 1)
    gates = [rng.standard_normal(shape).astype(np.float32) / 3 for shape in ((size, 24), (8, 24), (24,), (24,))]
    layers = (Gru(*gates),) if memory else ()
    last = Dense(
        rng.standard_normal((8 if memory else size, head.width)).astype(np.float32), np.zeros(head.width, np.float32)
    )
    path.write_bytes(exporter.generate(Blueprint(spec, head, (*layers, last), View(**view))))
    return path


def claimed(
    text: str, path: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None, **weights: np.ndarray
) -> Path:
    """A stranger's model that says that it is ours."""
    honest = onnx.load(exported(path))
    model = parsed(f"g {HEAD if '=>' not in text else ''}{text}", **weights)
    change(model)
    model.metadata_props.extend(honest.metadata_props)
    return written(model, path)


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [(CART, {}), (CART, {"history": 3}), (CART, {"memory": True}), (REACH, {}), (REACH, {"memory": True})],
)
def test_honest_exports_are_taken(spec: Spec, kwargs: dict, tmp_path: Path) -> None:
    policy = teachers.load(exported(tmp_path / "m.onnx", spec, **kwargs), spec).policy
    obs = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    said = policy(obs, policy.initial_state(5), np.ones(5, bool))
    assert said.action.shape == (5, *policy.head.shape)
    again = policy(obs, said.state, np.zeros(5, bool))
    assert again.params.shape == (5, policy.head.width)


def test_a_claim_alone_is_taken_where_it_is_true(tmp_path: Path) -> None:
    path = claimed("{ params = MatMul(obs, w) " + PICK + " }", tmp_path / "m.onnx", w=W)
    assert teachers.load(path, CART).policy.head.kind == "categorical"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ h = MatMul(obs, w) r = RandomNormalLike(h) params = Add(h, r) " + PICK + " }", "two answers"),
        ("{ h = MatMul(obs, w) m = ReduceMax<axes=[0]>(h) params = Sub(h, m) " + PICK + " }", "two answers"),
        ("{ h = MatMul(obs, w) l = Log(zero) params = Add(h, l) " + PICK + " }", "NaN or infinite"),
        ("{ params = MatMul(obs, w) b = ArgMin<axis=1>(params) action = Identity(b) }", "acts otherwise"),
        ("(float[n,4] obs) => (int64[n,k] action, float[n,2] params) { params = MatMul(obs, w) a = ArgMax<axis=1>(params) action = Concat<axis=1>(a, a) }", "'action' as int64"),
        ("(float[n,4] obs) => (int64[n,1] action, float[n,k] params) { h = MatMul(obs, w) params = Concat<axis=1>(h, h) b = ArgMax<axis=1>(h) action = Identity(b) }", "'params' as float32"),
        ("(float[n,4] obs, float[n,4] secret) => (int64[n,1] action, float[n,2] params) { o = Add(obs, secret) params = MatMul(o, w) " + PICK + " }", "'secret'"),
        ("(float[n,4] obs, float[n] state_x) => (int64[n,1] action, float[n,2] params) { params = MatMul(obs, w) " + PICK + " }", "'state_x'"),
        ("(float[n,4] obs, float[n,4] state_x) => (int64[n,1] action, float[n,2] params) { o = Add(obs, state_x) params = MatMul(o, w) " + PICK + " }", "'state_x_next'"),
        ("(float[n,4] obs) => (float[n,2] params) { params = MatMul(obs, w) }", "'action'"),
    ],
)  # fmt: skip
def test_a_false_claim_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    zero = np.zeros(1, np.float32)
    weights = {"w": W} | ({"zero": zero} if "zero" in text else {})
    with pytest.raises(InputError, match=message) as caught:
        teachers.load(claimed(text, tmp_path / "m.onnx", **weights), CART)
    assert "\n" not in str(caught.value)


def test_a_claim_gives_no_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of large products: seconds for a machine, bytes for the file."""
    size, links = 900, 300

    def chained(model: onnx.ModelProto) -> None:
        nodes = [helper.make_node("Expand", ["one", "shape"], ["x0"])]
        nodes += [helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(links)]
        nodes += [
            helper.make_node("ReduceMin", [f"x{links}"], ["least"], keepdims=0),
            helper.make_node("Mul", ["least", "nothing"], ["none"]),
            helper.make_node("Add", ["h", "none"], ["params"]),
        ]
        first = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([first[0], *nodes, *first[2:]])
        for name, value in {
            "one": np.full((1, 1), 1e-3, np.float32),
            "shape": np.array([size, size]),
            "nothing": np.zeros(1, np.float32),
        }.items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))

    path = claimed("{ h = MatMul(obs, w) params = Identity(h) " + PICK + " }", tmp_path / "m.onnx", chained, w=W)
    monkeypatch.setattr("limbeck.teachers.onnx_exported.TRIAL_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"ended after 0\.3 s"):
        teachers.load(path, CART)
    assert time.monotonic() - began < 5
    assert onnx_playing.TRIAL_SECONDS == 20


def test_the_numbers_are_checked_while_it_plays(tmp_path: Path) -> None:
    wide = replace(CART, observation_space=gym.spaces.Box(1, 5, (4,)))
    text = "{ h = MatMul(obs, w) r = Sqrt(obs) z = Mul(r, zero) p = MatMul(z, w) params = Add(h, p) " + PICK + " }"
    policy = teachers.load(claimed(text, tmp_path / "m.onnx", w=W, zero=np.zeros(1, np.float32)), wide).policy
    assert np.isfinite(policy(np.ones((2, 4), np.float32), {}, np.ones(2, bool)).params).all()
    with pytest.raises(InputError, match="NaN or infinite"):
        policy(np.full((2, 4), -1, np.float32), {}, np.ones(2, bool))
