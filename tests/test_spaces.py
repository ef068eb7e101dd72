"""Spaces on paper and at the border: what is read back is what was written, what an environment receives is in its space."""

import gymnasium as gym
import numpy as np
import pytest

from limbeck import blueprints, distributions, rollout, seeding, spaces, tasks
from limbeck.contracts import Blueprint, Dense, Head, Spec
from limbeck.errors import InputError
from limbeck.runtimes.numpy import NumpyPolicy

BOXES = {
    "a number": gym.spaces.Box(-1.0, 1.0, (), np.float32),
    "a number of any size": gym.spaces.Box(-np.inf, np.inf, (), np.float64),
    "one entry": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
    "nothing": gym.spaces.Box(-1.0, 1.0, (0,), np.float32),
    "other bounds for each": gym.spaces.Box(np.array([-0.1, -np.inf]), np.array([0.3, 7.0]), dtype=np.float64),
    "bytes": gym.spaces.Box(0, 255, (2, 3), np.uint8),
    "all of int64": gym.spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
    "all of uint64": gym.spaces.Box(0, 2**64 - 1, (), np.uint64),
}
ASYMMETRIC = gym.spaces.Box(-0.1, 0.3, (2,), np.float64)
ACTIONS = {
    "float64": ASYMMETRIC,
    "float64, one number": gym.spaces.Box(-0.1, 0.3, (), np.float64),
    "float64, bounds of either sign": gym.spaces.Box(np.array([-0.7, 0.1]), np.array([-0.1, 0.7]), dtype=np.float64),
    "float32": gym.spaces.Box(np.float32(-0.1), np.float32(0.3), (2,), np.float32),
    "float16": gym.spaces.Box(np.float16(-0.1), np.float16(0.3), (2,), np.float16),
    "whole numbers": gym.spaces.Box(-3, 4, (2,), np.int32),
    "bytes": gym.spaces.Box(0, 255, (1, 2), np.uint8),
    "one whole number": gym.spaces.Box(0, 5, (), np.int64),
    "Discrete": gym.spaces.Discrete(3, start=-1),
    "MultiDiscrete": gym.spaces.MultiDiscrete([3, 2], dtype=np.int32),
    "MultiBinary": gym.spaces.MultiBinary(3),
}


class Strict(gym.Env):
    """Takes nothing but members of its action space; the reward is what a Box action sums to."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        return self._seen(), float(np.sum(action)), False, self.t == 10, {}

    def _seen(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def far_policy(space, kind=None, scale=1000.0):
    """A policy whose answers lie on both bounds, nearly always."""
    spec = Spec(Strict.observation_space, space, "strict")
    head = spaces.head_for(space, kind)
    weights = np.random.default_rng(0).normal(0, scale, (3, head.width)).astype(np.float32)
    return Blueprint(spec, head, (Dense(weights, np.zeros(head.width, np.float32)),))


def seeds(count):
    return [seeding.episode_seed(0, "verify", i) for i in range(count)]


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES)
def test_a_box_is_read_back_as_it_was_written(space):
    found = spaces.from_json(spaces.to_json(space))
    assert found == space
    assert (found.shape, found.dtype) == (space.shape, space.dtype)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_a_policy_of_any_action_space_is_saved_and_loaded(space, tmp_path):
    given = far_policy(space)
    blueprints.save(given, tmp_path / "policy.safetensors")
    found, _ = blueprints.load(tmp_path / "policy.safetensors")
    assert spaces.to_json(found.spec.action_space) == spaces.to_json(space)
    assert found.head == given.head
    obs, first = np.eye(3, dtype=np.float32), np.ones(3, bool)
    said, again = (NumpyPolicy(one)(obs, {}, first).params for one in (given, found))
    assert np.array_equal(said, again)


def test_a_policy_that_sees_one_number_is_saved_and_loaded(tmp_path):
    seen = Spec(BOXES["a number"], gym.spaces.Box(-2.0, 2.0, (), np.float32), "scalar")
    layers = (Dense(np.ones((1, 1), np.float32), np.zeros(1, np.float32)),)
    blueprints.save(Blueprint(seen, spaces.head_for(seen.action_space), layers), tmp_path / "policy.safetensors")
    found, _ = blueprints.load(tmp_path / "policy.safetensors")
    assert found.spec.observation_space == BOXES["a number"]
    params = NumpyPolicy(found)(np.array([0.5, 0.25], np.float32), {}, np.ones(2, bool)).params
    assert np.array_equal(distributions.act(found.head, params), np.array([0.5, 0.25], np.float32))


# ---------------------------------------------------------------- what an environment receives


@pytest.mark.parametrize("vector", [False, True], ids=["single", "vector"])
@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_an_environment_receives_members_of_its_action_space(space, vector):
    make = lambda: Strict(space)  # noqa: E731
    task = tasks.resolve(gym.vector.SyncVectorEnv([make] * 4) if vector else make)
    for played, mode in ((NumpyPolicy(far_policy(space)), "greedy"), (None, "uniform")):
        returns = rollout.play(played, task, seeds(8), mode=mode).returns
        assert len(np.unique(returns)) > 1


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "deterministic", "tanh"])
def test_every_continuous_head_stays_within_bounds_that_float32_does_not_know(kind):
    played = NumpyPolicy(far_policy(ASYMMETRIC, kind))
    rollout.play(played, tasks.resolve(lambda: Strict(ASYMMETRIC)), seeds(4), mode="greedy")


def test_float32_alone_would_leave_the_space():
    """The control: without the border the strict environment refuses."""
    head = Head("deterministic", (2,), (-0.1, -0.1), (0.3, 0.3), shape=(2,))
    executed = distributions.execute(head, np.full((1, 2), 9, np.float32))
    assert executed.dtype == np.float32
    assert not ASYMMETRIC.contains(executed[0])
    assert ASYMMETRIC.contains(spaces.as_received(executed, ASYMMETRIC)[0])


def test_what_is_received_is_the_nearest_member():
    whole = gym.spaces.Box(np.array([0, -3]), np.array([5, 4]), dtype=np.int64)
    said = np.array([[3.7, -2.6], [9.0, -8.0], [0.4, 4.4]], np.float32)
    assert spaces.as_received(said, whole).tolist() == [[4, -3], [5, -3], [0, 4]]
    wide = gym.spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64)
    assert spaces.as_received(np.array([[1e30], [-1e30], [7.2]], np.float32), wide).tolist() == [[2**63 - 1], [-(2**63)], [7]]  # fmt: skip
    free = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    assert spaces.as_received(np.array([[1e30]], np.float32), free).item() == float(np.float32(1e30))


def test_float32_actions_within_float32_bounds_are_left_as_they_are():
    space = gym.spaces.Box(-2.0, 2.0, (3,), np.float32)
    said = np.random.default_rng(0).uniform(-2, 2, (100, 3)).astype(np.float32)
    assert np.array_equal(spaces.as_received(said, space), said)


def test_an_action_that_is_not_a_number_is_refused():
    for space in (ASYMMETRIC, gym.spaces.Box(0, 5, (2,), np.int64)):
        with pytest.raises(InputError, match="not a number"):
            spaces.as_received(np.array([[0.0, np.nan]], np.float32), space)
