"""Small real tasks and policies whose returns can be told by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from limbeck import tasks
from limbeck.contracts import Blueprint, Bounds, Dense, Head, PolicyOutput, Spec
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import flat_size, head_for

BOUNDS = Bounds(0.0, 1.0, "right or wrong")


def labelled_task(rows: int = 8000):
    """x uniform in [0, 1], label x > .5: one-step episodes, a quarter of the rows for proofs."""
    x = np.random.default_rng(0).random((rows, 1)).astype(np.float32)
    return tasks.labelled("halves", x, (x[:, 0] > 0.5).astype(int))


class Rule:
    """A policy from a function of the observation [B, O] to rows [B, W]; counts its calls."""

    def __init__(self, spec: Spec, rule: Callable[[np.ndarray], np.ndarray], head: Head | None = None) -> None:
        self.spec, self.head, self._rule, self.calls = spec, head or head_for(spec.action_space), rule, 0

    def initial_state(self, batch):
        return {}

    def __call__(self, obs, state, first):
        self.calls += 1
        return PolicyOutput(self._rule(np.asarray(obs)).astype(np.float32), state)


def right(task) -> Rule:
    return Rule(task.spec, lambda x: np.concatenate([0.5 - x, x - 0.5], axis=1))


def wrong_above(task, limit: float) -> Rule:
    """Wrong on the share 1 - limit of all rows."""
    flip = lambda x: np.where(x > limit, -1.0, 1.0)  # noqa: E731
    return Rule(task.spec, lambda x: flip(x) * np.concatenate([0.5 - x, x - 0.5], axis=1))


def network(task, sizes=(64, 64), seed=0, scale=1.0, kind=None) -> NumpyPolicy:
    """A random tanh network for the task."""
    rng, head = np.random.default_rng(seed), head_for(task.spec.action_space, kind)
    widths = [flat_size(task.spec.observation_space), *sizes, head.width]
    layers = [
        Dense(
            (scale * rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32),
            np.zeros(b, np.float32),
            "tanh" if i < len(sizes) else "identity",
        )
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    return NumpyPolicy(Blueprint(task.spec, head, tuple(layers)))


class Ramp(gym.Env):
    """Five steps; the observation is (episode's own number, step); the reward is the first observation, 0 in later steps."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x, self._t = float(self.np_random.uniform(-1, 1)), 0
        return self._obs(), {}

    def step(self, action):
        self._t += 1
        return self._obs(), self._x if self._t == 1 else 0.0, self._t == 5, False, {}

    def _obs(self):
        return np.array([self._x, self._t], np.float32)
