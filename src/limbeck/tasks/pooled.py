"""envpool: ports of many environments to C++, many times faster, and used to collect only.

A port may differ from what it ports, so nothing is judged in one. Its traps: it takes seeds when it is made and ignores
those of reset, so every round makes a new pool; the step after an episode's end is a reset (its rows are masked by
`VectorLanes`); some of its observation spaces are wrong, so Gymnasium's are used; MiniGrid's missions come as bytes and
are dropped; Atari with no no-ops at all ends the process, so there are always some.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from limbeck.contracts import Array, Lanes, Observation, SeedSource, Spec, Step
from limbeck.errors import InputError, missing_library, printable
from limbeck.tasks.quiet import quiet
from limbeck.tasks.vectors import VectorLanes, VectorTask

ATARI = {  # what gymnasium's ALE/NAME-v5 in the wrapper "atari" does, in envpool's words
    "stack_num": 1, "frame_skip": 4, "noop_max": 30, "use_fire_reset": False, "episodic_life": False,
    "reward_clip": False, "img_height": 84, "img_width": 84, "gray_scale": True, "repeat_action_probability": 0.25,
}  # fmt: skip


def pool_of(
    env_id: str, name: str, spec: Spec, wrappers: Sequence[str], kwargs: dict[str, Any], max_steps: int | None
) -> Callable[[int, SeedSource], Lanes]:
    """What hands out collection lanes in envpool's port; refuses where it has none that does the same."""
    try:
        with quiet():
            import envpool
    except ImportError as error:
        raise missing_library("envpool", "envpool", "backend 'envpool'") from error
    atari = env_id.startswith("ALE/") and tuple(wrappers) == ("atari",)
    known = list(envpool.list_all_envs())
    port = env_id.removeprefix("ALE/")
    if port not in known:
        close = difflib.get_close_matches(port, known, n=1, cutoff=0.0)
        raise InputError(
            f"envpool has no {printable(port)!r}; the nearest it has is {close[0]!r}. Allowed: backend gymnasium."
        )
    if env_id.startswith("ALE/") and not atari:
        raise InputError("envpool plays Atari in the wrapper 'atari' alone. Add it, or use backend gymnasium.")
    if wrappers and not atari:
        raise InputError(f"envpool takes no wrappers, given {', '.join(wrappers)}. Allowed: backend gymnasium.")
    odd = sorted(set(kwargs) - {"max_episode_steps"})
    if odd:
        raise InputError(
            f"envpool does not know the argument {odd[0]!r} of Gymnasium's environment. Use backend gymnasium."
        )
    arguments: dict[str, Any] = dict(ATARI) if atari else {}
    if max_steps is not None:
        arguments["max_episode_steps"] = max_steps

    def make(seeds: list[int]) -> Any:
        with quiet():
            return envpool.make(port, env_type="gymnasium", num_envs=len(seeds), num_threads=1, seed=seeds, **arguments)

    return lambda count, seeds: PooledLanes(name, spec, make, count, seeds)


def is_pool(env: object) -> bool:
    """Whether a vector environment is one of envpool's."""
    return any(parent.__module__.startswith("envpool.") for parent in type(env).__mro__)


def repeatable(env: Any, spec: Spec) -> VectorEnv[Any, Any, Any]:
    """The same kind of pool, made anew with the seeds of every reset; the caller's own is left as it is."""
    config = env.spec.config._asdict()
    if config["batch_size"] != config["num_envs"] or config.get("noop_max", 1) == 0:
        raise InputError(
            "this pool steps part of its environments at a time, or starts Atari without no-ops, which ends the process. Make it with batch_size=num_envs and noop_max >= 1."
        )

    def make(seeds: list[int]) -> Any:
        with quiet():
            kind = type(env.spec)
            return type(env)(kind(kind.gen_config(**(config | {"seed": seeds[0], "env_seed": seeds}))))

    return _Pool(spec, make, int(config["num_envs"]))


class PooledLanes:
    """Lanes of one pool, closed with them. Only a lane's first episode starts from a seed of its own."""

    def __init__(self, name: str, spec: Spec, make: Callable[[list[int]], Any], count: int, seeds: SeedSource) -> None:
        self._pool = _Pool(spec, make, count)
        self._lanes = VectorLanes(VectorTask(name, spec, self._pool, AutoresetMode.NEXT_STEP), seeds, stream=True)
        self.count = count

    def start(self) -> Step:
        return self._lanes.start()

    def step(self, actions: Array) -> Step:
        return self._lanes.step(actions)

    def answers(self) -> None:
        return None

    def close(self) -> None:
        self._pool.close()


class _Pool(VectorEnv[Any, Any, Any]):
    """A pool that is made anew by every seeded reset, and whose observations are what `spec` says."""

    def __init__(self, spec: Spec, make: Callable[[list[int]], Any], count: int) -> None:
        self.num_envs, self._spec, self._make = count, spec, make
        self._made: Any = None
        self._dtype: Any = None
        self.single_observation_space, self.single_action_space = spec.observation_space, spec.action_space
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if not isinstance(seed, list):
            raise InputError("a pool starts from one seed per lane. Pass a list.")
        self.close_extras()
        self._made = self._make([int(one or 0) for one in seed])
        whole = isinstance(self.single_action_space, spaces.Discrete | spaces.MultiDiscrete)
        with quiet():
            self._dtype = np.int32 if whole else self._made.action_space.dtype
            obs, _ = self._made.reset()
        return self._as_specified(obs), {}

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self._made.step(np.ascontiguousarray(actions, self._dtype))
        return self._as_specified(obs), reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def _as_specified(self, obs: Any) -> Observation:
        space = self._spec.observation_space
        if isinstance(space, spaces.Dict):
            return {key: _cast(obs[key], part, self.num_envs) for key, part in space.spaces.items()}
        return _cast(obs, space, self.num_envs)


def _cast(obs: Any, space: gym.Space[Any], count: int) -> Array:
    return np.asarray(obs).reshape(count, *(space.shape or ())).astype(space.dtype)
