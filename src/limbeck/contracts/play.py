"""Where a policy plays: tasks, lanes, steps, episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts.policies import Array, Observation, Spec


@dataclass(frozen=True)
class Step:
    """One vector step. Rows with `alive` False were a reset or an idle slot: no transition took place there, and the
    observation they were taken from must not be stored."""

    obs: Observation  # [B, ...] after the step: what the policy sees next
    reward: NDArray[np.float64]  # [B]
    terminated: NDArray[np.bool_]  # [B]
    truncated: NDArray[np.bool_]  # [B]
    alive: NDArray[np.bool_]  # [B] a transition took place in this row
    first: NDArray[np.bool_]  # [B] `obs` begins a new episode in this row
    seeds: NDArray[np.int64]  # [B] seed of the episode that `obs` belongs to; -1 where the slot is idle or unseeded
    final_obs: Observation | None = None  # [B, ...] last observation of the episodes that ended here, where known


class Lanes(Protocol):
    """B environments stepped together. Every episode starts from a seed that `seeds` hands out, where that is possible."""

    @property
    def count(self) -> int: ...

    def start(self) -> Step:
        """Reset all lanes; `alive` is all False, `first` all True (idle lanes False)."""
        ...

    def step(self, actions: Array) -> Step:
        """One step in every lane; the actions of idle lanes are ignored."""
        ...

    def answers(self) -> NDArray[np.int64] | None:
        """[B] the right said action for the current observations, where the task knows it (labelled sets)."""
        ...

    def close(self) -> None: ...


SeedSource = Callable[[int], int | None]  # lane -> seed of its next episode, None: stay idle


@dataclass(frozen=True)
class Bounds:
    """Floor and ceiling of the return, fixed before a proof on episodes that are not the proof's."""

    floor: float
    ceiling: float
    source: str  # how they were fixed, in words


class Task(Protocol):
    """What a policy is judged on: an environment, or a labelled set as one-step episodes."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def bounds(self) -> Bounds | None:
        """Floor and ceiling of the return where the task knows them; None: they are measured before a proof."""
        ...

    @property
    def has_answers(self) -> bool:
        """Whether the task knows the right action for every observation (labelled sets)."""
        ...

    @property
    def max_lanes(self) -> int | None:
        """A fixed number of lanes (a ready-made vector environment), or None."""
        ...

    @property
    def proof_episodes(self) -> int | None:
        """How many different episodes there are for proofs (test rows of a labelled set); None: without end."""
        ...

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        """B lanes. Every episode starts from a seed of its own; with `stream` only each lane's first one must."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Returns by seed, in the order of the seeds asked for."""

    task: str
    seeds: NDArray[np.int64]  # [N]
    returns: NDArray[np.float64]  # [N], undiscounted
    lengths: NDArray[np.int64]  # [N], environment steps

    @property
    def env_steps(self) -> int:
        return int(self.lengths.sum())
