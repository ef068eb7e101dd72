"""The worst observation nearby: each number moved by at most a radius, so that the action changes where it can.

Projected signed steps (PGD, Madry et al. 2018; on policies after Huang et al. 2017), their signs from differences of
answers: no gradient is needed, so compiled files, trees and whole-number layers are attacked as networks are.

    x_0 = x,    x_(k+1) = clip(x_k + STRIDE r sign(slope of the harm at x_k), x - r, x + r),    k < STEPS

Beside x_1 the whole signed step x + r sign(...) is tried (FGSM, Goodfellow et al. 2015), and both of them the other way
round. Every point that is asked about lies in the box, the probes of the differences too, and the worst of all is
taken, the true observation where none does harm: never weaker than the single step. Nothing is drawn, so the same
observation has the same answer. A stronger attack may exist: what is measured here is an upper bound of robustness.

Price of one decision: 2 O STEPS + STEPS + 4 answers for O numbers, where the single step takes 2 O + 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Array, Head, Observation, Policy, PolicyOutput, Spec, State
from limbeck.proof.eprocess import Reals
from limbeck.runtimes.around import Around

MOST_NUMBERS = 64  # of an observation: each costs two answers of the policy and step
STEPS = 4  # projected ones; 1: FGSM alone
STRIDE = 0.5  # of the radius: two steps reach the border, four cross the box
NAME = f"PGD, {STEPS} steps"


def obstacle(spec: Spec) -> str:
    """Why the observation cannot be attacked; "" where it can."""
    space = spec.observation_space
    numbers = isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
    if numbers and spec.agents == 1 and (space.shape or (0,))[0] <= MOST_NUMBERS:
        return ""
    return f"only observations of up to {MOST_NUMBERS} real numbers are attacked"


@dataclass
class _Worst:
    """The most harmful point found so far of each of B observations."""

    points: Array  # [B, O]
    harm: Reals  # [B]

    def see(self, points: Array, harm: Reals) -> None:
        """Keep what is worse of M points [M, B, O] and their harm [M, B]; of equals the one that came first."""
        best = harm.argmax(axis=0)
        rows = np.arange(points.shape[1])
        worse = harm[best, rows] > self.harm
        self.points = np.where(worse[:, None], points[best, rows], self.points)
        self.harm = np.where(worse, harm[best, rows], self.harm)


class Attacked(Around):
    """A policy that sees the worst observation found within level standard deviations of every number."""

    def __init__(self, inner: Policy, level: float, spread: Mapping[str, Array], steps: int = STEPS) -> None:
        super().__init__(inner)
        self._radius = level * np.asarray(spread[""], np.float64)
        self._steps = steps

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        assert not isinstance(obs, dict)
        return self.inner(self._worst(obs, state, first), state, first)

    def _worst(self, obs: Array, state: State, first: NDArray[np.bool_]) -> Array:
        numbers, head = obs.shape[1], self.head
        asked = self._probes(obs, obs, 1.0)
        rows = self._said(np.concatenate([obs[None], asked]), state, first)
        true, moved = rows[:1], _decides(head, rows[1:], rows[:1])

        def judged(points: Array) -> Reals:
            """[M, B] the harm of points [M, B, O]."""
            harm = _harm(head, self._said(points, state, first), true)
            worst.see(points, harm)
            return harm

        worst = _Worst(obs, np.zeros(len(obs)))
        worst.see(asked, _harm(head, rows[1:], true))
        whole = _signs(moved[:numbers] - moved[numbers:], head.discrete) * self._radius  # [B, O]
        judged(self._within(np.stack([obs + whole, obs - whole]), obs))
        if self._steps > 1:
            ways = self._within(np.stack([obs + STRIDE * whole, obs - STRIDE * whole]), obs)
            up, down = judged(ways)
            at = np.where((up >= down)[:, None], ways[0], ways[1])
            for _ in range(self._steps - 1):
                harm = judged(self._probes(at, obs, STRIDE))
                steepest = np.sign(harm[:numbers] - harm[numbers:]).T
                at = self._within(at + STRIDE * self._radius * steepest, obs)
                judged(at[None])
        return worst.points

    def _probes(self, at: Array, obs: Array, width: float) -> Array:
        """[2 O, B, O] the points `at` [B, O] with each number moved up by a share of the radius, then down."""
        moves = np.diag(width * self._radius)
        return self._within(at + np.concatenate([moves, -moves])[:, None], obs)

    def _within(self, points: Reals, obs: Array) -> Array:
        """Points [..., B, O] projected into the box around the B observations, in their number type."""
        return np.clip(points, obs - self._radius, obs + self._radius).astype(obs.dtype)

    def _said(self, points: Array, state: State, first: NDArray[np.bool_]) -> Reals:
        """[M, B, W] params at M points [M, B, O] of B observations, executed actions where they are continuous."""
        tiles, count = points.shape[:2]
        held = {key: np.concatenate([value] * tiles) for key, value in state.items()}
        output = self.inner(points.reshape(tiles * count, -1), held, np.tile(first, tiles))
        rows: Array = output.params
        if not self.head.discrete:
            rows = output.action if output.action is not None else distributions.act(self.head, output.params)
        return rows.reshape(tiles, count, -1).astype(np.float64)


def _decides(head: Head, rows: Reals, true: Reals) -> Reals:
    """[M, B, F] what decides: leads of the actions that are greedy in the true rows [1, B, W], or actions themselves."""
    return _leads(head, rows, true) if head.discrete else rows


def _leads(head: Head, rows: Reals, true: Reals) -> Reals:
    """[M, B, 1] by how much the action that is greedy in the true rows leads all others; several choices: the sum."""
    if head.kind == "bernoulli":
        return (np.where(true > 0, 1.0, -1.0) * rows).sum(axis=2, keepdims=True)
    total = np.zeros((*rows.shape[:2], 1))
    begins = np.cumsum([0, *head.sizes])
    for begin, end in itertools.pairwise(begins.tolist()):
        group = rows[..., begin:end]
        best = np.broadcast_to(true[..., begin:end].argmax(axis=2)[..., None], (*rows.shape[:2], 1))
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


def _harm(head: Head, rows: Reals, true: Reals) -> Reals:
    """[M, B] how much worse what is said is than what was said to the true observations."""
    apart = _decides(head, true, true) - _decides(head, rows, true)
    return apart[..., 0] if head.discrete else np.abs(apart).sum(axis=2)
