"""Playing a WebAssembly module: rows, memory, the same bits in both engines, closed loop, and modules that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_export import CASES, blueprint, observations, starts

from limbeck import rollout, tasks
from limbeck.contracts import Blueprint
from limbeck.errors import InputError
from limbeck.exporters import wasm as target
from limbeck.runtimes import wasm
from limbeck.runtimes.numpy import NumpyPolicy

needs_clang = pytest.mark.skipif(bool(target.missing()), reason=target.missing())
needs_wasmtime = pytest.mark.skipif(bool(wasm.missing("wasmtime")), reason=wasm.missing("wasmtime"))
needs_node = pytest.mark.skipif(bool(wasm.missing("node")), reason=wasm.missing("node"))
Loaded = Callable[[str, str], wasm.WasmPolicy]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A case, compiled once, in an engine."""
    made: dict[str, Path] = {}

    def load(name: str, engine: str) -> wasm.WasmPolicy:
        if lacking := target.missing() or wasm.missing(engine):
            pytest.skip(lacking)
        policy = CASES[name]
        if name not in made:
            made[name] = tmp_path_factory.mktemp("wasm")
            target.export(policy, made[name])
        files = (made[name] / target.WASM, made[name] / target.LOADER)
        return wasm.load(*files, policy.spec, policy.head, policy.view, engine)

    return load


def led(policy: wasm.WasmPolicy, obs: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T, B, ...] params and actions of B sequences led side by side."""
    state = policy.initial_state(obs.shape[1])
    params, actions = [], []
    for now, fresh in zip(obs, first, strict=True):
        output = policy(now, state, fresh)
        state = output.state
        params.append(output.params)
        actions.append(output.action)
    return np.stack(params), np.stack(actions)


@pytest.mark.parametrize("engine", wasm.ENGINES)
def test_sequences_side_by_side_are_sequences_alone(loaded: Loaded, engine: str) -> None:
    policy = loaded("gru with history", engine)
    drawn = observations(policy.spec.observation_space, 27)
    assert isinstance(drawn, np.ndarray)
    obs, first = drawn.reshape(9, 3, 5), starts(27, 4).reshape(3, 9).T.copy()
    first[0] = True
    params, actions = led(policy, obs, first)
    for row in range(3):
        alone = led(policy, obs[:, row : row + 1], first[:, row : row + 1])
        assert np.array_equal(params[:, row], alone[0][:, 0])
        assert np.array_equal(actions[:, row], alone[1][:, 0])
    forgetful = led(policy, obs, np.ones_like(first))
    assert not np.array_equal(params, forgetful[0]), "memory must matter, or this test says nothing"


def test_both_engines_say_the_same_bits(loaded: Loaded) -> None:
    for name in ("squashed", "gru with history"):
        obs = observations(CASES[name].spec.observation_space, 12)
        assert isinstance(obs, np.ndarray)
        ours = [led(loaded(name, engine), obs.reshape(4, 3, 5), starts(12, 5).reshape(4, 3)) for engine in wasm.ENGINES]
        assert np.array_equal(ours[0][0], ours[1][0])
        assert np.array_equal(ours[0][1], ours[1][1])


def test_batches_that_do_not_fit_are_refused(loaded: Loaded) -> None:
    policy = loaded("gru with history", "wasmtime")
    obs = observations(policy.spec.observation_space, 2)
    for state in ({}, policy.initial_state(3), {"memory": np.zeros((2, 8), np.float32)}):
        with pytest.raises(InputError, match="does not fit the policy"):
            policy(obs, state, np.ones(2, bool))


@needs_clang
@pytest.mark.parametrize("engine", wasm.ENGINES)
def test_it_plays_a_whole_task(engine: str, tmp_path: Path) -> None:
    if lacking := wasm.missing(engine):
        pytest.skip(lacking)
    task = tasks.resolve("CartPole-v1")
    weak = blueprint(task.spec.action_space, hidden=(8,), observation_space=task.spec.observation_space, seed=1)
    policy = replace(weak, spec=task.spec)
    target.export(policy, tmp_path)
    played = wasm.load(tmp_path / target.WASM, tmp_path / target.LOADER, policy.spec, policy.head, engine=engine)
    seeds = range(8)
    wanted = rollout.play(NumpyPolicy(policy), task, seeds)
    assert np.array_equal(rollout.play(played, task, seeds).returns, wanted.returns)
    assert len(set(wanted.returns)) > 2, "episodes must differ, or this test says little"


@needs_clang
def test_another_contract_is_refused(tmp_path: Path) -> None:
    target.export(CASES["tiny"], tmp_path)
    other: Blueprint = CASES["q"]
    files = (tmp_path / target.WASM, tmp_path / target.LOADER)
    with pytest.raises(InputError, match="gives 4; its contract says 5 and 3"):
        wasm.load(*files, other.spec, other.head)
    with pytest.raises(InputError, match="unknown engine 'nod'; did you mean 'node'"):
        wasm.load(*files, other.spec, other.head, engine="nod")


POLICY = """(module {}
  (memory (export "memory") 1)
  (func (export "obs") (result i32) i32.const {})
  (func (export "params") (result i32) i32.const 64)
  (func (export "action") (result i32) i32.const 128)
  (func (export "state") (result i32) i32.const 192)
  (func (export "obs_size") (result i32) i32.const 5)
  (func (export "params_size") (result i32) i32.const 4)
  (func (export "action_size") (result i32) i32.const 1)
  (func (export "state_size") (result i32) i32.const 0)
  (func (export "action_is_whole") (result i32) i32.const 1)
  (func (export "guard") (result i32) i32.const 0)
  (func (export "steps") (result i32) i32.const 0)
  (func (export "strange") (result i32) i32.const 0)
  (func (export "outside") (result i32) i32.const 0)
  (func (export "reset"))
  (func (export "step") {}))"""


@needs_wasmtime
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (POLICY.format('(import "env" "steal" (func))', 0, ""), "asks for env.steal from outside. Allowed: nothing"),
        ("(module)", "has no memory, obs, params"),
        (POLICY.format("", 65530, ""), "obs lies outside of its memory"),
        (POLICY.format("", -4, ""), "says obs = -4"),
        ("no module", "policy.wasm does not run"),
    ],
)
def test_modules_that_are_no_policy_are_refused(text: str, words: str) -> None:
    import wasmtime

    content = wasmtime.wat2wasm(text) if text.startswith("(") else text.encode()
    with pytest.raises(InputError) as caught:
        wasm.Wasmtime(bytes(content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_wasmtime
@pytest.mark.parametrize("engine", wasm.ENGINES)
def test_a_module_that_fails_in_a_step_is_an_error(engine: str, tmp_path: Path) -> None:
    import wasmtime

    if lacking := wasm.missing(engine):
        pytest.skip(lacking)
    (tmp_path / "policy.wasm").write_bytes(bytes(wasmtime.wat2wasm(POLICY.format("", 0, "unreachable"))))
    (tmp_path / "policy.mjs").write_bytes((target.FREESTANDING / "policy.mjs").read_bytes())
    tiny = CASES["tiny"]
    policy = wasm.load(tmp_path / "policy.wasm", tmp_path / "policy.mjs", tiny.spec, tiny.head, engine=engine)
    with pytest.raises(InputError, match=r"policy\.wasm does not run: .*unreachable"):
        policy(observations(tiny.spec.observation_space, 1), {}, np.ones(1, bool))


@needs_node
def test_node_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "policy.wasm").write_bytes(b"no module")
    (tmp_path / "policy.mjs").write_bytes((target.FREESTANDING / "policy.mjs").read_bytes())
    with pytest.raises(InputError, match=r"policy\.wasm does not run: .*CompileError"):
        wasm.Node(tmp_path / "policy.mjs", tmp_path / "policy.wasm")
    with pytest.raises(InputError, match=r"no file at .*gone\.mjs"):
        wasm.load(tmp_path / "policy.wasm", tmp_path / "gone.mjs", CASES["tiny"].spec, CASES["tiny"].head)


def test_what_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(wasm, "find_spec", lambda name: None)
    assert wasm.missing("wasmtime") == 'wasmtime is not installed; run: pip install "limbeck[wasm]"'
    assert wasm.missing("node") == "node is not installed; run: apt-get install nodejs"
