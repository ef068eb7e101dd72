"""Gymnasium environments, one by one: every episode starts by an explicit reset with its own seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Bounds, Lanes, SeedSource, Spec, Step
from limbeck.errors import EnvironmentFault
from limbeck.spaces import as_received
from limbeck.tasks.border import Border
from limbeck.tasks.hanging import guarded, watchdog
from limbeck.tasks.observations import copy_observation, empty_observation, finite_rows, put_row


@dataclass(frozen=True)
class EnvTask:
    """Episodes of a Gymnasium environment that `make` builds."""

    name: str
    spec: Spec
    make: Callable[[], gym.Env[Any, Any]]
    bounds: Bounds | None = None
    max_lanes: int | None = None
    has_answers: bool = False
    proof_episodes: int | None = None
    notes: tuple[str, ...] = ()
    border: Border = field(default_factory=Border)  # from what the environment gives to what `spec` says
    pool: Callable[[int, SeedSource], Lanes] | None = (
        None  # faster lanes for collection; play and proofs never use them
    )

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return self.pool(count, seeds) if stream and self.pool is not None else EnvLanes(self, count, seeds)


def _built(task: EnvTask) -> gym.Env[Any, Any]:
    watchdog.beat()
    return task.make()


class EnvLanes:
    """B single environments; a finished one is reset at once with the next seed, or idles."""

    def __init__(self, task: EnvTask, count: int, seeds: SeedSource) -> None:
        self._task, self.count, self._seeds = task, count, seeds
        with guarded(task.name, "building"):
            self._envs = [_built(task) for _ in range(count)]
        self._single = isinstance(task.spec.action_space, gym.spaces.Discrete)  # a number; all others take an array
        self._masks = [task.border.mask_method(env) for env in self._envs]
        self._seed = np.full(count, -1, np.int64)
        self._age = np.zeros(count, np.int64)
        self._obs = empty_observation(task.spec, count)

    def start(self) -> Step:
        for lane in range(self.count):
            self._restart(lane)
        self._check_finite(np.zeros(self.count), self._seed >= 0)
        nothing = np.zeros(self.count, bool)
        return Step(
            copy_observation(self._obs),
            np.zeros(self.count),
            nothing,
            nothing.copy(),
            nothing.copy(),
            self._seed >= 0,
            self._seed.copy(),
        )

    def step(self, actions: Array) -> Step:
        reward = np.zeros(self.count)
        terminated, truncated, first = (np.zeros(self.count, bool) for _ in range(3))
        alive = self._seed >= 0
        received = as_received(actions, self._task.spec.action_space)
        final = None
        lane = 0
        with guarded(self._task.name, "step", lambda: self._place(lane)):
            for lane in np.flatnonzero(alive).tolist():
                watchdog.beat()
                action = received[lane] if self._single else received[lane, ...]
                obs, reward[lane], terminated[lane], truncated[lane], info = self._envs[lane].step(action)
                put_row(self._obs, lane, self._task.border.row(obs, info, self._masks[lane]))
        self._age[alive] += 1
        self._check_finite(reward, alive)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            final = copy_observation(self._obs)
            for lane in ended.tolist():
                self._restart(lane)
                first[lane] = self._seed[lane] >= 0
            self._check_finite(reward, self._seed >= 0)
        return Step(copy_observation(self._obs), reward, terminated, truncated, alive, first, self._seed.copy(), final)

    def answers(self) -> None:
        return None

    def render(self, lane: int) -> Array | None:
        """The picture of one lane, if the environment was made to draw."""
        frame = self._envs[lane].render()
        return np.asarray(frame) if frame is not None else None

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _restart(self, lane: int) -> None:
        seed = self._seeds(int(lane))
        self._seed[lane], self._age[lane] = (-1 if seed is None else seed), 0
        if seed is not None:
            with guarded(self._task.name, "reset"):
                obs, info = self._envs[lane].reset(seed=int(seed))
                put_row(self._obs, lane, self._task.border.row(obs, info, self._masks[lane]))

    def _place(self, lane: int) -> str:
        return f" at step {self._age[lane]} of the episode with seed {self._seed[lane]}"

    def _check_finite(self, reward: NDArray[np.float64], alive: NDArray[np.bool_]) -> None:
        bad = ~finite_rows(self._obs, self.count) | ~np.isfinite(reward)
        if (bad & alive).any():
            lane = int(np.flatnonzero(bad & alive)[0])
            what = "a reward" if not np.isfinite(reward[lane]) else "an observation"
            raise EnvironmentFault(
                f"{self._task.name} returned {what} that is not finite{self._place(lane)}. Mend the environment; finished rounds are kept."
            )
