"""The worst observation nearby, against the closed form of linear policies."""

import gymnasium as gym
import numpy as np
import pytest

from limbeck.contracts import Blueprint, Dense, Spec, Tree
from limbeck.proof import attacks
from limbeck.proof.attacks import Attacked
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import head_for

BOX = gym.spaces.Box(-10, 10, (3,), np.float32)
WEIGHT = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]], np.float32)
SPREAD = {"": np.array([1.0, 2.0, 0.5])}


def linear(actions=gym.spaces.Discrete(2), weight=WEIGHT):
    spec = Spec(BOX, actions)
    return NumpyPolicy(Blueprint(spec, head_for(actions), (Dense(weight, np.zeros(weight.shape[1], np.float32)),)))


def seen(policy, level, obs):
    return Attacked(policy, level, SPREAD)._worst(obs, {}, np.ones(len(obs), bool))


def test_a_linear_policy_s_lead_falls_by_the_radius_times_its_weights():
    """The least of w x over a box is w x - sum |w_i| r_i (Goodfellow et al. 2015): w = (2, .5, -2), r = .1 (1, 2, .5)."""
    obs = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    worst = seen(linear(), 0.1, obs)
    assert (np.abs(worst - obs) <= 0.1 * SPREAD[""] + 1e-6).all()
    lead = lambda x: np.sign(obs @ [2, 0.5, -2]) * (x @ [2, 0.5, -2])  # noqa: E731
    np.testing.assert_allclose(lead(obs) - lead(worst), 0.2 + 0.1 + 0.1, atol=1e-5)


def test_a_continuous_action_moves_as_far_as_it_can():
    policy = linear(gym.spaces.Box(-100, 100, (1,), np.float32), np.array([[3.0], [-1.0], [0.5]], np.float32))
    obs = np.random.default_rng(1).normal(0, 1, (20, 3)).astype(np.float32)
    moved = np.abs((seen(policy, 0.2, obs) - obs) @ [3, -1, 0.5])
    np.testing.assert_allclose(moved, 0.2 * (3 * 1 + 1 * 2 + 0.5 * 0.5), atol=1e-4)


def test_a_tree_s_threshold_is_crossed_though_its_gradient_is_zero():
    stump = Tree(np.array([], np.float32), np.array([0.5], np.float32), np.array([[0], [1]], np.float32),
                 ((1,),), ((-1, -2),), width=3, says=2)  # fmt: skip
    spec = Spec(BOX, gym.spaces.Discrete(2))
    policy = NumpyPolicy(Blueprint(spec, head_for(spec.action_space), (stump,)))
    obs = np.array([[0, 0.45, 0], [0, 0.55, 0], [0, 0.2, 0]], np.float32)
    attacked = Attacked(policy, 0.05, SPREAD)(obs, {}, np.ones(3, bool))
    assert attacked.params.argmax(axis=1).tolist() == [1, 0, 0], "within .1, beyond it not"


def test_memory_is_carried_once_by_what_was_seen():
    class Counts:
        spec, head = linear().spec, linear().head

        def initial_state(self, batch):
            return {"n": np.zeros(batch)}

        def __call__(self, obs, state, first):
            out = linear()(obs, {}, first)
            return type(out)(out.params, {"n": np.where(first, 0, state["n"]) + 1})

    policy, obs = Attacked(Counts(), 0.1, SPREAD), np.zeros((4, 3), np.float32)
    output = policy(obs, policy.initial_state(4), np.ones(4, bool))
    assert policy(obs, output.state, np.zeros(4, bool)).state["n"].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("space", "able"),
    [
        (BOX, True),
        (gym.spaces.Box(0, 255, (8, 8), np.uint8), False),
        (gym.spaces.Box(-1, 1, (65,), np.float32), False),
        (gym.spaces.Dict({"a": BOX}), False),
        (gym.spaces.Discrete(4), False),
    ],
)
def test_which_observations_are_attacked(space, able):
    assert (attacks.obstacle(Spec(space, gym.spaces.Discrete(2))) == "") is able
