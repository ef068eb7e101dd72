"""Shares of influence against linear policies, whose shares are |weight| times spread."""

import gymnasium as gym
import numpy as np
import pytest

from limbeck.contracts import Blueprint, Dense, Gru, Head, Spec, Tree, View
from limbeck.proof.saliency import Rows, saliency
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import head_for

BOX = gym.spaces.Box(-10, 10, (3,), np.float32)
NAMES = ["obs[0]", "obs[1]", "obs[2]"]
ROWS = np.random.default_rng(0).normal(0, [1.0, 2.0, 0.5], (200, 3)).astype(np.float32)
FIRST = np.arange(200) % 50 == 0


def dense(weight, actions, head=None):
    weight = np.array(weight, np.float32)
    layer = Dense(weight, np.zeros(weight.shape[1], np.float32))
    return NumpyPolicy(Blueprint(Spec(BOX, actions), head or head_for(actions), (layer,)))


def shares(policy, rows=ROWS):
    return saliency(policy, Rows(rows, FIRST[: len(rows)]), NAMES)


def wanted(weights):
    influence = np.abs(weights) * ROWS.std(axis=0)
    return dict(zip(NAMES, influence / influence.sum(), strict=True))


def test_choices_of_a_linear_policy():
    found = shares(dense([[1, -1], [0.5, 0], [0, 2]], gym.spaces.Discrete(2)))
    assert found == pytest.approx(wanted([2, 0.5, 2]), abs=1e-4)
    assert list(found) == sorted(found, key=lambda key: -found[key]), "largest first"


def test_continuous_actions_count_in_units_of_their_range():
    """Action 0 spans 200, action 1 spans 20: a unit of the latter counts ten times as much."""
    box = gym.spaces.Box(np.array([-100, -10], np.float32), np.array([100, 10], np.float32))
    found = shares(dense([[1, 0], [0, 0.1], [1, 1]], box))
    assert found == pytest.approx(wanted([1, 1, 11]), abs=1e-4)


def test_independent_buttons_count_together():
    found = shares(dense([[1, 1], [0, 3], [0, 0]], gym.spaces.MultiBinary(2)))
    assert set(found) == {"obs[0]", "obs[1]"}
    assert found == pytest.approx({k: v for k, v in wanted([2, 3, 0]).items() if v}, abs=1e-4)


def test_a_tree_has_influence_where_its_threshold_is_near():
    stump = Tree(np.array([], np.float32), np.array([0.0], np.float32), np.array([[0], [1]], np.float32),
                 ((1,),), ((-1, -2),), width=3, says=2)  # fmt: skip
    spec = Spec(BOX, gym.spaces.Discrete(2))
    assert shares(NumpyPolicy(Blueprint(spec, head_for(spec.action_space), (stump,)))) == {"obs[1]": 1.0}


def test_a_policy_that_looks_at_nothing_has_none():
    assert shares(dense(np.zeros((3, 2)), gym.spaces.Discrete(2))) == {}


def test_memory_follows_the_true_observations():
    """A GRU whose update gate is shut forgets nothing else: what it says is tanh(x0), so x0 alone has influence."""
    gates = np.zeros((3, 3), np.float32)
    gates[0, 2] = 1.0
    shut = np.array([0, -50, 0], np.float32)  # h' = (1 - z) n + z h with z = 0
    gru = Gru(gates, np.zeros((1, 3), np.float32), shut, np.zeros(3, np.float32))
    out = Dense(np.array([[1.0, -1.0]], np.float32), np.zeros(2, np.float32))
    spec = Spec(BOX, gym.spaces.Discrete(2))
    found = shares(NumpyPolicy(Blueprint(spec, Head("categorical", (2,)), (gru, out))))
    assert found == {"obs[0]": 1.0}


def test_forbidden_actions_do_not_count():
    policy = dense([[1, -1, 0], [0, 0, 0], [0, 0, 5]], gym.spaces.Discrete(3))
    masks = np.tile(np.array([True, True, False]), (200, 1))
    masked = NumpyPolicy(Blueprint(policy.spec, policy.head, policy.blueprint.layers, View(mask=None)))
    assert saliency(masked, Rows(ROWS, FIRST, masks), NAMES) == {"obs[0]": 1.0}
