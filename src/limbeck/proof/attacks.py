"""The worst observation nearby: each number moved by at most a radius, so that the action changes where it can.

One signed step (FGSM, Goodfellow et al. 2015; on policies Huang et al. 2017), its signs from differences as wide as the
radius itself: no gradient is needed, so compiled files, trees and whole-number layers are attacked as networks are.
The better of the step and its opposite is taken, and the true observation where neither helps. A stronger attack may
exist: what is measured here is an upper bound of robustness.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Array, Floats, Head, Observation, Policy, PolicyOutput, Spec, State
from limbeck.proof.eprocess import Reals
from limbeck.runtimes.around import Around

MOST_NUMBERS = 64  # of an observation: each costs two answers of the policy


def obstacle(spec: Spec) -> str:
    """Why the observation cannot be attacked; "" where it can."""
    space = spec.observation_space
    numbers = isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
    if numbers and spec.agents == 1 and (space.shape or (0,))[0] <= MOST_NUMBERS:
        return ""
    return f"only observations of up to {MOST_NUMBERS} real numbers are attacked"


class Attacked(Around):
    """A policy that sees the worst observation within level standard deviations of every number."""

    def __init__(self, inner: Policy, level: float, spread: Mapping[str, Array]) -> None:
        super().__init__(inner)
        self._radius = level * np.asarray(spread[""], np.float64)

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        assert not isinstance(obs, dict)
        return self.inner(self._worst(obs, state, first), state, first)

    def _worst(self, obs: Array, state: State, first: NDArray[np.bool_]) -> Array:
        count, numbers = obs.shape
        moves = np.diag(self._radius)
        probes = np.concatenate([np.zeros((1, numbers)), moves, -moves])
        said = self._asked(obs, probes[:, None], state, first)  # [1 + 2 O, B, F]
        plus, minus = said[1 : numbers + 1], said[numbers + 1 :]
        signs = _signs(plus - minus, self.head.discrete)  # [B, O] of the steepest way down
        steps = np.stack([np.zeros((count, numbers)), signs * self._radius, -signs * self._radius])
        change = self._asked(obs, steps, state, first)
        found = (steps + obs).astype(obs.dtype)
        return np.asarray(found[_harm(change, self.head.discrete).argmax(axis=0), np.arange(count)])

    def _asked(self, obs: Array, steps: Reals, state: State, first: NDArray[np.bool_]) -> Reals:
        """[M, B, F] what decides after M steps [M, 1 or B, O] from the B observations."""
        many = (obs + steps).astype(obs.dtype)
        tiles = len(many)
        flat = many.reshape(-1, many.shape[-1])
        held = {key: np.concatenate([value] * tiles) for key, value in state.items()}
        output = self.inner(flat, held, np.tile(first, tiles))
        rows = output.params.reshape(tiles, len(obs), -1)
        if self.head.discrete:
            return _leads(self.head, rows)
        acted = output.action if output.action is not None else distributions.act(self.head, output.params)
        return acted.reshape(tiles, len(obs), -1).astype(np.float64)


def _leads(head: Head, rows: Floats) -> Reals:
    """[M, B, 1] by how much the action that is greedy in the first of M rows leads all others; several choices: the sum."""
    if head.kind == "bernoulli":
        return (np.where(rows[:1] > 0, 1.0, -1.0) * rows).sum(axis=2, keepdims=True)
    total = np.zeros((*rows.shape[:2], 1))
    begins = np.cumsum([0, *head.sizes])
    for begin, end in itertools.pairwise(begins.tolist()):
        group = rows[..., begin:end].astype(np.float64)
        best = np.broadcast_to(group[:1].argmax(axis=2)[..., None], (*rows.shape[:2], 1))
        others = np.array(group)
        np.put_along_axis(others, best, -np.inf, axis=2)
        rival = others.max(axis=2, keepdims=True) if end - begin > 1 else 0.0
        total += np.take_along_axis(group, best, axis=2) - rival
    return total


def _signs(slopes: Reals, discrete: bool) -> Reals:
    """[B, O] signs that lower a lead, or move the action whose slopes [O, B, F] are largest in sum."""
    if discrete:
        return -np.sign(slopes[:, :, 0]).T
    chosen = np.abs(slopes).sum(axis=0).argmax(axis=1)  # [B]
    return np.sign(slopes[:, np.arange(slopes.shape[1]), chosen]).T


def _harm(said: Reals, discrete: bool) -> Reals:
    """[M, B] how much worse each of M observations is than the first, the true one."""
    if discrete:
        return said[:1, :, 0] - said[:, :, 0]
    return np.abs(said - said[:1]).sum(axis=2)
