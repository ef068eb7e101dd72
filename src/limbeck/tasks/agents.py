"""A team as one environment: PettingZoo's parallel environments whose agents are all alike.

The joint observation has one row per agent, the joint action one entry per agent, so one network shared by all agents
can read it; which row is whose never changes (the order of `possible_agents`).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck.contracts import Array
from limbeck.errors import InputError, missing_library, nearest, printable
from limbeck.tasks.border import MASK, OBSERVATION, simple_space
from limbeck.tasks.quiet import quiet

PREFIXES = ("pettingzoo/", "mpe2/")


class Team(gym.Env[Any, Any]):
    """Observation [agents, ...] float32, zeros for agents that are gone (their mask allows everything); action
    MultiDiscrete([n] * agents) or Box [agents * n]; reward: the mean over the agents that acted; over when all are
    gone, truncated if any of the last ones was."""

    def __init__(self, world: Any) -> None:
        self.world, self.names = world, list(world.possible_agents)
        self.agents, self.render_mode = len(self.names), getattr(world, "render_mode", None)
        seen, self._border, _ = simple_space(self._shared("observation"))
        self.action_space = self._joint_actions(self._shared("action"))
        self._masked = isinstance(seen, spaces.Dict) and set(seen.spaces) == {OBSERVATION, MASK}
        box = seen[OBSERVATION] if isinstance(seen, spaces.Dict) and self._masked else seen
        if not isinstance(box, spaces.Box):
            raise InputError(
                f"the agents' observation {seen} is not supported. Allowed: Box, or Dict of observation and action_mask."
            )
        self._row = box.shape
        low, high = self._bound(np.minimum(box.low, 0)), self._bound(np.maximum(box.high, 0))
        self.observation_space: gym.Space[Any] = spaces.Box(low, high, dtype=np.float32)
        if self._masked:
            mask = spaces.MultiBinary(self.agents * self._choices)
            self.observation_space = spaces.Dict({OBSERVATION: self.observation_space, MASK: mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        obs, _ = self.world.reset(seed=seed, options=options)
        return self._joint(obs), {}

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        acting = [name for name in self.names if name in self.world.agents]
        parts = action.tolist() if self._shape is None else action.reshape(self.agents, *self._shape)
        chosen = {name: parts[i] for i, name in enumerate(self.names) if name in acting}
        obs, rewards, terminated, truncated, _ = self.world.step(chosen)
        reward = float(np.mean([rewards[name] for name in acting])) if acting else 0.0
        gone = not self.world.agents or all(terminated[n] or truncated[n] for n in acting)
        cut = gone and any(truncated[name] for name in acting)
        return self._joint(obs), reward, gone and not cut, cut, {}

    def render(self) -> Any:
        return self.world.render()

    def close(self) -> None:
        self.world.close()

    def _joint(self, obs: dict[str, Any]) -> Any:
        rows = np.zeros((self.agents, *self._row), np.float32)
        mask = np.ones((self.agents, self._choices), np.int8) if self._masked else None
        for i, name in enumerate(self.names):
            if name in obs:
                seen = self._border.row(obs[name], {})
                rows[i] = np.asarray(seen[OBSERVATION] if self._masked else seen, np.float32)
                if mask is not None:
                    mask[i] = seen[MASK]
        return rows if mask is None else {OBSERVATION: rows, MASK: mask.reshape(-1)}

    def _bound(self, bound: Array) -> Array:
        return np.stack([bound.astype(np.float32)] * self.agents)

    def _joint_actions(self, one: gym.Space[Any]) -> gym.Space[Any]:
        if isinstance(one, spaces.Discrete):
            self._shape: tuple[int, ...] | None = None
            self._choices = int(one.n)
            return spaces.MultiDiscrete([self._choices] * self.agents, start=[int(one.start)] * self.agents)
        if isinstance(one, spaces.Box):
            self._shape, self._choices = one.shape, 0
            low, high = (np.tile(bound.reshape(-1), self.agents) for bound in (one.low, one.high))
            return spaces.Box(low, high, dtype=one.dtype.type)
        raise InputError(f"the agents' action space {one} is not supported. Allowed: Discrete and Box.")

    def _shared(self, what: str) -> gym.Space[Any]:
        """The space that all agents have in common."""
        of = self.world.observation_space if what == "observation" else self.world.action_space
        first: gym.Space[Any] = of(self.names[0])
        for name in self.names[1:]:
            if of(name) != first:
                raise InputError(
                    f"the agents differ: {printable(self.names[0])} has the {what} space {first}, {printable(name)} {of(name)}. Allowed: teams whose agents are alike."
                )
        return first


def build_team(given: str, arguments: dict[str, Any]) -> Team:
    """A team from an id such as `pettingzoo/sisl.pursuit_v5` or `mpe2/simple_spread_v3`, built with `arguments`."""
    package, _, name = given.partition("/")
    if importlib.util.find_spec(package) is None:
        raise missing_library(package, "multiagent", f"environment {printable(given)!r}")
    family, _, world = name.rpartition(".")
    home = f"{package}.{family}" if family else package
    try:
        with quiet():
            folder = importlib.import_module(home)
            known = sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if "_v" in m.name)
            module = importlib.import_module(f"{home}.{world}") if world in known else None
    except ImportError as error:
        raise InputError(
            f'environment {printable(given)!r} cannot be imported: {printable(error)}. Run: pip install "limbeck[multiagent]"'
        ) from error
    if module is None:
        same = [k for k in known if k.rpartition("_v")[0] == world.rpartition("_v")[0]]
        hint = f"; the version here is {same[-1]!r}." if same else nearest(world, known)
        raise InputError(f"unknown environment {printable(given)!r}{hint} Allowed in {home}: {', '.join(known)}.")
    if not hasattr(module, "parallel_env"):
        raise InputError(f"{printable(given)!r} has its agents take turns. Allowed: environments with parallel_env.")
    with quiet():
        return Team(module.parallel_env(**arguments))
