"""The worst observation nearby, against the closed form of linear policies and against a single signed step."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from proof_cases import Rule

from limbeck import distributions, rollout, tasks, teachers
from limbeck.contracts import Blueprint, Dense, Spec, Tree
from limbeck.proof import attacks
from limbeck.proof.attacks import Attacked
from limbeck.proof.disturbances import DISTURBANCES
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import head_for

TEACHERS = Path(__file__).parents[2] / "recipes" / "teachers"
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


# ---------------------------------------------------------------- several steps


def turned():
    """A policy on two numbers in [-1, 1] whose lead is 1.5 - h, h = .8 x0 + .1 x1 - max(x0, 0) x1: largest, 1.7, at (1, -1).

    Seen from the origin h rises with both numbers, so one signed step goes to (1, 1), where h is -.1; only where x0 is
    above .1 does it show that x1 has to fall.
    """
    spec = Spec(gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2))

    def said(x):
        lead = 1.5 - (0.8 * x[:, :1] + 0.1 * x[:, 1:] - np.maximum(x[:, :1], 0) * x[:, 1:])
        return np.concatenate([lead, 0 * lead], axis=1)

    return Rule(spec, said)


def worst_of(policy, radius, obs, steps=attacks.STEPS):
    attacked = Attacked(policy, 1.0, {"": np.broadcast_to(radius, obs.shape[1:]).astype(float)}, steps)
    return attacked._worst(obs, {}, np.ones(len(obs), bool))


def test_a_worst_point_that_one_step_misses_is_found_by_several():
    origin = np.zeros((1, 2), np.float32)
    assert worst_of(turned(), 1.0, origin).tolist() == [[1, -1]], "the only point where another action is greedy"
    alone = worst_of(turned(), 1.0, origin, steps=1)
    assert turned()(alone, {}, np.ones(1, bool)).params.argmax() == 0, "the single step and its probes miss it"


def lead_lost(policy, points, obs):
    """[B] by how much the two actions' order, or the continuous action, is off."""
    before, after = (policy(x, {}, np.ones(len(obs), bool)) for x in (obs, points))
    if not policy.head.discrete:
        acted = [distributions.act(policy.head, one.params).astype(float) for one in (before, after)]
        return np.abs(acted[1] - acted[0]).sum(axis=1)
    best = before.params.argmax(axis=1)[:, None]
    leads = [2 * np.take_along_axis(one.params, best, 1)[:, 0] - one.params.sum(axis=1) for one in (before, after)]
    return (leads[0] - leads[1]).astype(float)


def single_step(policy, radius, obs):
    """FGSM written down once more: signs of central differences, the better of both ways, or the observation itself."""
    base = policy(obs, {}, np.ones(len(obs), bool)).params

    def value(x):
        params = policy(x.astype(np.float32), {}, np.ones(len(obs), bool)).params
        if not policy.head.discrete:
            return distributions.act(policy.head, params)[:, 0].astype(float)
        best = base.argmax(axis=1)[:, None]
        return (2 * np.take_along_axis(params, best, 1)[:, 0] - params.sum(axis=1)).astype(float)

    moves = np.diag(radius)
    signs = np.stack([np.sign(value(obs + move) - value(obs - move)) for move in moves], axis=1)
    tried = [(obs + way * radius * signs).astype(np.float32) for way in (0, 1, -1)]
    return np.max([lead_lost(policy, one, obs) for one in tried], axis=0)


@pytest.mark.parametrize(("name", "env"), [("cartpole", "CartPole-v1"), ("pendulum", "Pendulum-v1")])
def test_on_visited_states_of_a_trained_policy_it_is_never_weaker_than_the_single_step(name, env):
    task = tasks.resolve(env)
    policy = teachers.load(str(TEACHERS / f"{name}.safetensors"), task.spec).policy
    seen = []
    rollout.play(policy, task, range(4), most=60, watch=lambda frame: seen.append(np.array(frame.obs)))
    obs = np.concatenate(seen)
    radius = 0.2 * obs.std(axis=0)
    points = worst_of(policy, radius, obs)
    assert (np.abs(points - obs) <= radius + 1e-6).all()
    ours, theirs = lead_lost(policy, points, obs), single_step(policy, radius, obs)
    assert (ours >= theirs - 1e-4 * np.maximum(theirs, 1)).all()
    assert env.startswith("CartPole") or (ours > theirs + 1e-3).any(), "stronger, but where a policy is nearly linear"
    assert np.array_equal(points, worst_of(policy, radius, obs)), "nothing is drawn"


def test_the_price_is_what_is_said():
    policy = turned()
    counted = []
    asked = policy.__call__

    class Counting(Rule):
        def __call__(self, obs, state, first):
            counted.append(len(obs))
            return asked(obs, state, first)

    counting = Counting(policy.spec, None)
    worst_of(counting, 1.0, np.zeros((3, 2), np.float32))
    assert sum(counted) == 3 * (2 * 2 * attacks.STEPS + attacks.STEPS + 4)


def test_a_row_says_which_attack_it_is():
    assert DISTURBANCES["adversarial"].unit == "standard deviations (PGD, 4 steps)"
