"""A vector environment that exists already, in any of Gymnasium's three autoreset modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from limbeck.contracts import Array, Bounds, Lanes, Observation, SeedSource, Spec, Step
from limbeck.errors import EnvironmentFault, InputError
from limbeck.spaces import as_received
from limbeck.tasks.border import Border
from limbeck.tasks.hanging import guarded
from limbeck.tasks.observations import copy_observation, empty_observation, finite_rows


@dataclass(frozen=True)
class VectorTask:
    """A ready-made `gymnasium.vector.VectorEnv`. It is reset, never closed."""

    name: str
    spec: Spec
    env: VectorEnv[Any, Any, Any]
    mode: AutoresetMode
    bounds: Bounds | None = None
    has_answers: bool = False
    proof_episodes: int | None = None
    notes: tuple[str, ...] = ()
    border: Border = field(default_factory=Border)  # from what the environment gives to what `spec` says

    @property
    def max_lanes(self) -> int:
        return int(self.env.num_envs)

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return VectorLanes(self, seeds, stream)


class VectorLanes:
    """All lanes are reset together by seed. With `stream` the environment's own autoreset goes on; without it a lane
    that ended idles until all have, and the next wave of seeds resets the whole vector."""

    def __init__(self, task: VectorTask, seeds: SeedSource, stream: bool) -> None:
        self._task, self._seeds, self._stream = task, seeds, stream
        self.count = task.max_lanes
        self._seed = np.full(self.count, -1, np.int64)
        self._idle = np.zeros(self.count, bool)
        self._pending = np.zeros(self.count, bool)  # NEXT_STEP: the coming step of this row is its reset

    def start(self) -> Step:
        return self._wave()

    def _wave(self) -> Step:
        wanted = [self._seeds(lane) for lane in range(self.count)]
        self._idle = np.array([seed is None for seed in wanted])
        self._seed = np.array([-1 if seed is None else seed for seed in wanted], np.int64)
        self._pending[:] = False
        nothing = np.zeros(self.count, bool)
        if self._idle.all():
            obs: Observation = empty_observation(self._task.spec, self.count)
        else:
            obs = self._seen(*self._call("reset", lambda: self._reset([max(s, 0) for s in self._seed.tolist()])))
        return Step(
            copy_observation(obs),
            np.zeros(self.count),
            nothing,
            nothing.copy(),
            nothing.copy(),
            ~self._idle,
            self._seed.copy(),
        )

    def step(self, actions: Array) -> Step:
        if self._idle.all():
            return self._wave()
        alive = ~self._idle & ~self._pending
        received = as_received(actions, self._task.spec.action_space)
        raw, reward, terminated, truncated, info = self._call("step", lambda: self._task.env.step(received))
        obs = self._seen(raw, info)
        over = np.asarray(terminated, bool) | np.asarray(truncated, bool)  # idle rows too
        terminated, truncated = np.asarray(terminated, bool) & alive, np.asarray(truncated, bool) & alive
        reward = np.where(alive, np.asarray(reward, np.float64), 0.0)
        self._check_finite(obs, reward, alive)
        first, ended = self._pending.copy(), terminated | truncated
        self._pending[:] = False
        final = info.get("final_obs") if isinstance(info, dict) and self._task.border.plain else None
        if not self._stream:
            first[:] = False
            self._idle |= ended
            self._seed[ended] = -1
            if self._idle.all():
                wave = self._wave()
                return Step(wave.obs, reward, terminated, truncated, alive, wave.first, wave.seeds, None)
            if over.any() and self._task.mode is AutoresetMode.DISABLED:
                obs = self._reset_rows(over)
        elif ended.any():
            self._seed[ended] = -1
            if self._task.mode is AutoresetMode.NEXT_STEP:
                self._pending = ended.copy()
            elif self._task.mode is AutoresetMode.SAME_STEP:
                first |= ended
            else:
                obs = self._reset_rows(ended)
                first |= ended
        return Step(
            copy_observation(obs),
            reward,
            terminated,
            truncated,
            alive,
            first,
            self._seed.copy(),
            final if final is None or isinstance(final, dict) else None,
        )

    def _reset_rows(self, rows: NDArray[np.bool_]) -> Observation:
        return self._seen(*self._call("reset", lambda: self._task.env.reset(options={"reset_mask": rows})))

    def _reset(self, seeds: list[int]) -> Any:
        """Every lane by its own seed, in a list as Gymnasium wants it, or in an array as ale-py does."""
        env: Any = self._task.env
        try:
            return env.reset(seed=seeds)
        except TypeError:
            return env.reset(seed=np.array(seeds))

    def _seen(self, raw: Any, info: Any) -> Observation:
        """The batch as the task's spec says, with the masks that the environments' methods offer."""
        border, env = self._task.border, cast(Any, self._task.env)  # `call` is not every vector environment's
        obs = border.row(raw, info, lambda: np.stack(env.call("action_masks")))
        seen: Observation = obs
        return seen

    def answers(self) -> None:
        return None

    def close(self) -> None:
        """The environment belongs to the caller."""

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        with guarded(self._task.name, what):
            try:
                return call()
            except gym.error.Error as error:
                if what == "reset" and "eed" in str(error):
                    raise _unseedable(self._task.name) from error
                raise

    def _check_finite(self, obs: Observation, reward: NDArray[np.float64], alive: NDArray[np.bool_]) -> None:
        bad = (~finite_rows(obs, self.count) | ~np.isfinite(reward)) & alive
        if bad.any():
            raise EnvironmentFault(
                f"{self._task.name} returned numbers that are not finite in lane {int(np.flatnonzero(bad)[0])}. Mend the environment."
            )


def _unseedable(name: str) -> InputError:
    return InputError(
        f'the vector environment {name} takes no seed per lane, so its episodes cannot be repeated. Make it with vectorization_mode="sync", or name its id.'
    )
