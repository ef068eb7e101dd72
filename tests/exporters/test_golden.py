"""Golden rows come from visited states, hold a reset, survive the disk, and notice what they must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES
from gymnasium import spaces as S

from limbeck import spaces, storage, tasks
from limbeck.contracts import Blueprint, Dense, Head, Spec, Task
from limbeck.errors import InputError
from limbeck.exporters import golden
from limbeck.runtimes.numpy import NumpyPolicy


def cartpole(gru: int | None) -> tuple[NumpyPolicy, Task]:
    task = tasks.resolve("CartPole-v1")
    return NumpyPolicy(blueprint(S.Discrete(2), observation_space=task.spec.observation_space, gru=gru)), task


@pytest.mark.parametrize("gru", [None, 3])
def test_recorded_rows_are_whole_episodes_in_order_with_a_reset_inside(gru: int | None) -> None:
    policy, task = cartpole(gru)
    rows = golden.record(policy, task, run_seed=3, steps=60)
    assert 60 <= rows.rows <= 61
    assert rows.first[0]
    assert rows.first[1:].any()
    assert rows.env_steps >= rows.rows
    assert isinstance(rows.obs, np.ndarray)
    # CartPole moves x by 0.02 v each step: rows follow one another inside an episode and only there
    follows = np.isclose(rows.obs[1:, 0], rows.obs[:-1, 0] + 0.02 * rows.obs[:-1, 1], atol=1e-5)
    assert (follows == ~rows.first[1:]).all()
    again = golden.record(policy, task, run_seed=3, steps=60)
    assert np.array_equal(again.obs, rows.obs)
    assert np.array_equal(again.params, rows.params)
    other = golden.record(policy, task, run_seed=4, steps=60)
    assert not np.array_equal(other.obs[0], rows.obs[0])


def test_long_episodes_are_cut_so_that_the_second_one_fits() -> None:
    task = tasks.resolve("CartPole-v1")
    weight = np.array([[-1, 1], [-1, 1], [-8, 8], [-4, 4]], np.float32)  # balances until the time limit
    space = task.spec.observation_space
    balance = Blueprint(
        Spec(space, task.spec.action_space),
        spaces.head_for(task.spec.action_space),
        (Dense(weight, np.zeros(2, np.float32)),),
    )
    rows = golden.record(NumpyPolicy(balance), task, run_seed=0, steps=40)
    assert rows.rows == 40
    assert np.flatnonzero(rows.first).tolist() == [0, 20]
    assert rows.env_steps > 400


@pytest.mark.parametrize("name", ["dict view", "gru", "multicategorical matrix", "squashed"])
def test_rows_survive_the_disk(name: str, tmp_path: Path) -> None:
    policy = CASES[name]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 9), starts(9, 4), env_steps=12)
    golden.save(rows, tmp_path / "golden.safetensors", policy.spec, policy.view)
    back = golden.load(tmp_path / "golden.safetensors")
    assert np.array_equal(back.params, rows.params)
    assert np.array_equal(back.actions, rows.actions)
    assert np.array_equal(back.first, rows.first)
    assert back.env_steps == 12
    assert golden.compare(back, NumpyPolicy(policy)).worst_error == 0


@pytest.mark.parametrize("name", ["categorical", "squashed", "gru", "history"])
def test_one_changed_weight_is_noticed(name: str) -> None:
    policy = CASES[name]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 30), starts(30))
    last = policy.layers[-1]
    assert isinstance(last, Dense)
    weight = last.weight.copy()
    weight[:, 0] += np.float32(1e-3)
    changed = replace(policy, layers=(*policy.layers[:-1], Dense(weight, last.bias)))
    assert golden.compare(rows, NumpyPolicy(policy)).ok
    assert not golden.compare(rows, NumpyPolicy(changed)).ok


def test_a_forgotten_reset_is_noticed() -> None:
    policy = CASES["gru"]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 30), starts(30))
    never = replace(rows, first=np.arange(30) == 0)
    assert not golden.compare(never, NumpyPolicy(policy)).ok


def test_wrong_actions_fail_unless_the_choice_was_close() -> None:
    head = Head("categorical", (3,))
    params = np.array([[0, 1, 2], [0, 1, 1.00005], [2, 1, 0]], np.float32)
    assert golden.close_calls(head, params).tolist() == [False, True, False]
    assert golden.close_calls(Head("bernoulli", (2,)), np.array([[5e-5, 1], [1, -1]], np.float32)).tolist() == [
        True,
        False,
    ]
    assert not golden.close_calls(Head("deterministic", (3,)), params).any()


def test_rows_must_begin_with_a_reset() -> None:
    policy = CASES["gru"]
    with pytest.raises(InputError, match="must begin"):
        golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 3), np.zeros(3, bool))


def walking(space: S.Box, episode: int) -> Task:
    """A task whose observations are samples of the space."""
    import gymnasium as gym

    class Walk(gym.Env):
        observation_space, action_space = space, S.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            self.steps = 0
            return self.observation_space.sample(), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.steps += 1
            return self.observation_space.sample(), 0.0, self.steps >= episode, False, {}

    return tasks.resolve(Walk)


def test_images_are_kept_in_few_rows_of_bytes(tmp_path: Path) -> None:
    space = S.Box(0, 255, (84, 84, 4), np.uint8)
    task = walking(space, 40)
    weight = np.random.default_rng(0).normal(size=(84 * 84 * 4, 2)).astype(np.float32) / 1000
    policy = Blueprint(task.spec, spaces.head_for(S.Discrete(2)), (Dense(weight, np.zeros(2, np.float32)),))
    rows = golden.record(NumpyPolicy(policy), task, run_seed=3, steps=400)
    assert 32 <= rows.rows <= 40
    assert rows.first.sum() >= 2
    golden.save(rows, tmp_path / "golden.safetensors", policy.spec, policy.view)
    assert (tmp_path / "golden.safetensors").stat().st_size < 1.2 * 2**20
    back = golden.load(tmp_path / "golden.safetensors")
    assert isinstance(back.obs, np.ndarray)
    assert back.obs.dtype == np.uint8
    assert golden.compare(back, NumpyPolicy(policy)).worst_error == 0


def test_only_what_is_kept_of_long_episodes_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copy = tasks.copy_observation
    monkeypatch.setattr(tasks, "copy_observation", lambda obs: (copied.append(1), copy(obs))[1])
    task = walking(S.Box(0, 1, (3,), np.float32), 300)
    policy = blueprint(S.Discrete(2), hidden=(), observation_space=task.spec.observation_space)
    rows = golden.record(NumpyPolicy(policy), task, run_seed=1, steps=20)
    assert rows.rows == 20
    assert rows.env_steps == 600
    assert len(copied) == 20


def test_short_observations_keep_their_flat_input(tmp_path: Path) -> None:
    policy = LAYER_CASES["masked keys"]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 9), starts(9, 4))
    golden.save(rows, tmp_path / "golden.safetensors", policy.spec, policy.view)
    arrays, _ = storage.read_arrays(tmp_path / "golden.safetensors")
    assert np.array_equal(arrays["input"], spaces.input_rows(rows.obs, policy.spec.observation_space, policy.view))
    assert arrays["input"].shape == (9, 9)
