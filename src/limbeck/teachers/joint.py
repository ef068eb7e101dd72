"""One agent's policy as the policy of a team: the same network asked once per agent."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, spaces
from limbeck.contracts import Array, Floats, Head, HeadKind, Observation, Policy, PolicyOutput, Spec, State, Teacher
from limbeck.errors import InputError
from limbeck.spaces import MASK

SURE = 30.0  # how far below the chosen action's logit the others lie, for teachers that state values


def one_of(team: Spec) -> Spec:
    """What a single agent of the team sees and does. Raises InputError for teams whose parts cannot be told apart."""
    seen = team.observation_space
    observation: gym.Space[Any] = (
        gym.spaces.Dict({k: _part(v, team.agents) for k, v in seen.spaces.items()})
        if isinstance(seen, gym.spaces.Dict)
        else _part(seen, team.agents)
    )
    match team.action_space:
        case gym.spaces.MultiDiscrete(nvec=sizes, start=start):
            action: gym.Space[Any] = gym.spaces.Discrete(int(sizes[0]), start=int(start[0]))
        case gym.spaces.Box(low=low, high=high):
            count = low.size // team.agents
            action = gym.spaces.Box(low[:count], high[:count], dtype=low.dtype.type)
        case other:
            raise spaces.unsupported("a team's action space", other)
    return Spec(observation, action, team.name)


def for_team(teacher: Teacher, team: Spec) -> Teacher:
    """The teacher of one agent as the teacher of all."""
    note = f"one policy acts for each of {team.agents} agents"
    info = replace(teacher.info, notes=(*teacher.info.notes, note))
    return Teacher(TeamPolicy(teacher.policy, team), info)


class TeamPolicy:
    """[B, agents, O] observations as B x agents rows of a policy for one."""

    def __init__(self, one: Policy, team: Spec) -> None:
        self.one, self.spec, self._agents = one, team, team.agents
        kinds: dict[HeadKind, HeadKind] = {"categorical": "multicategorical", "q": "multicategorical"}
        if one.head.kind not in (*kinds, "gaussian", "squashed", "deterministic", "tanh", "bernoulli"):
            raise InputError(
                f"a {one.head.kind} teacher cannot act for a team of {team.agents}. Train it on one choice."
            )
        self.head: Head = spaces.head_for(team.action_space, kinds.get(one.head.kind, one.head.kind))

    def initial_state(self, batch: int) -> State:
        one = self.one.initial_state(batch * self._agents)
        return {key: value.reshape(batch, self._agents, *value.shape[1:]) for key, value in one.items()}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        batch, agents = len(first), self._agents
        apart = {key: value.reshape(batch * agents, *value.shape[2:]) for key, value in state.items()}
        output = self.one(self._apart(obs, batch), apart, np.repeat(first, agents))
        after = {key: value.reshape(batch, agents, *value.shape[1:]) for key, value in output.state.items()}
        value = None if output.value is None else output.value.reshape(batch, agents).mean(axis=1)
        return PolicyOutput(self._together(output.params, batch), after, value)

    def _apart(self, obs: Observation, batch: int) -> Observation:
        def split(column: Array) -> Array:
            if column.ndim > 2:
                return column.reshape(batch * self._agents, *column.shape[2:])
            return column.reshape(batch * self._agents, -1)

        return {k: split(v) for k, v in obs.items()} if isinstance(obs, dict) else split(obs)

    def _together(self, params: Floats, batch: int) -> Floats:
        head = self.one.head
        if head.kind == "q":  # a team's head holds choices: the best one, all but surely
            best = params == params.max(axis=1, keepdims=True)
            params = np.where(best, np.float32(0), np.float32(-SURE))
        if head.kind in ("gaussian", "squashed"):
            mean, log_std = np.split(params, 2, axis=1)
            return np.concatenate([mean.reshape(batch, -1), log_std.reshape(batch, -1)], axis=1)
        return distributions.log_softmax(params).reshape(batch, -1) if head.kind == "q" else params.reshape(batch, -1)


def _part(space: gym.Space[Any], agents: int) -> gym.Space[Any]:
    match space:
        case gym.spaces.Box(low=low, high=high) if low.shape[0] == agents:
            return gym.spaces.Box(low[0], high[0], dtype=low.dtype.type)
        case gym.spaces.MultiBinary() if math.prod(space.shape) % agents == 0:  # an action mask
            return gym.spaces.MultiBinary(math.prod(space.shape) // agents)
    raise InputError(f"{space} has no row for each of {agents} agents ({MASK} aside). Give the environment per agent.")
