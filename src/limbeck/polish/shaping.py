"""Episodes that are left early, the rest judged by the teacher's value: potential-based shaping over a truncated horizon.

With r'_t = r_t + gamma Phi(s_{t+1}) - Phi(s_t), Phi = V_T and Phi = 0 where the task itself ended (Ng, Harada & Russell
1999, eq. 2), the sum of gamma^t r'_t over H steps telescopes to

    sum_{t<H} gamma^t r_t + gamma^H V_T(s_H) - V_T(s_0)

the truncated horizon of THOR (Sun, Bagnell & Boots 2018, arXiv:1805.11240). So the teacher is asked for the value of two
states per episode, not of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck import rollout, tasks
from limbeck.contracts import Array, Observation, Policy, Task
from limbeck.losses.reward import shaped_reward
from limbeck.rollout import BLOCK, Frame

Value = Callable[[Observation, int], Array]  # B observations, B -> [B]


@dataclass(frozen=True)
class Shaping:
    """Where episodes are left, and what is thought of the state they are left in."""

    horizon: int  # H, environment steps
    gamma: float
    value: Value  # V_T


def score(policy: Policy, task: Task, seeds: list[int], shaping: Shaping) -> tuple[NDArray[np.float64], int]:
    """[N] sums of discounted shaped rewards over the first H steps of every seed's episode, and the steps taken."""
    parts, steps = [], 0
    wave = task.max_lanes or BLOCK
    for begin in range(0, len(seeds), wave):
        mine = seeds[begin : begin + wave]
        watcher = _Watcher(len(mine), shaping)
        played = rollout.play(policy, task, mine, slots=wave, number=begin, most=shaping.horizon, watch=watcher)
        parts.append(watcher.scores())
        steps += played.env_steps
    return np.concatenate(parts), steps


class _Watcher:
    """Adds up one episode per seed as it is played."""

    def __init__(self, count: int, shaping: Shaping) -> None:
        self._returns = np.zeros(count)  # sum of gamma^t r_t
        self._begun, self._left = np.zeros(count), np.zeros(count)  # V of the first state, and of that it was left in
        self._ended = np.zeros(count, np.bool_)  # by the task itself: nothing follows
        self._age = np.zeros(count, np.int64)  # steps taken
        self._shaping = shaping

    def scores(self) -> NDArray[np.float64]:
        """[N] what the episodes are worth: shaped as if each were one step of their length."""
        discount = self._shaping.gamma**self._age
        return shaped_reward(self._returns, self._begun, self._left, self._ended, discount)

    def __call__(self, frame: Frame) -> None:
        rows = np.flatnonzero(frame.alive)
        number = frame.indices[rows]
        age = self._age[number]
        limited = frame.truncated[rows] & ~frame.terminated[rows]  # a time limit is no end of the task: Phi is V there
        last = frame.after.final_obs
        self._value(self._begun, frame.obs, rows[age == 0], frame.indices)
        if last is None:  # the state it was left in is not told, so it is left one step before
            self._value(self._left, frame.obs, rows[limited], frame.indices)
            rows, number, age = rows[~limited], number[~limited], age[~limited]
        self._returns[number] += frame.reward[rows] * self._shaping.gamma**age
        self._age[number] += 1
        if last is not None:
            self._value(self._left, last, rows[limited], frame.indices)
        self._ended[number] |= frame.terminated[rows]
        ended = frame.terminated[rows] | frame.truncated[rows]
        left = rows[~ended & (age + 1 == self._shaping.horizon)]
        self._value(self._left, frame.after.obs, left, frame.indices)

    def _value(
        self, into: NDArray[np.float64], obs: Observation, rows: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> None:
        """V(obs) for these rows of the batch."""
        if len(rows):
            into[indices[rows]] = self._shaping.value(tasks.take_rows(obs, rows), len(rows))
