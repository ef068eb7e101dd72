"""A corridor whose last door is chosen by a bit that only the teacher sees: what any student can reach is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 4  # places; at the last one the action must be the bit
OPTIMUM = 0.5  # mean return of the best policy that does not see the bit; 1 of one that does, 1/4 of random play
IMITABLE = 1 - 1 / (2 * LENGTH)  # share of the teacher's choices that such a policy can share


class HiddenBit(gym.Env[dict[str, Any], int]):
    """Every action leads on; the last one pays 1 if it is the bit, and two of the four actions never are."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {"bit": spaces.Discrete(2), "place": spaces.Box(0, 1, (LENGTH,), np.float32)}
        )
        self.action_space = spaces.Discrete(4)
        self._bit, self._place = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._bit, self._place = int(self.np_random.integers(2)), 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        at_the_door = self._place == LENGTH - 1
        reward = float(at_the_door and int(action) == self._bit)
        self._place = min(self._place + 1, LENGTH - 1)
        return self._seen(), reward, at_the_door, False, {}

    def _seen(self) -> dict[str, Any]:
        return {"bit": np.int64(self._bit), "place": np.eye(LENGTH, dtype=np.float32)[self._place]}


def teacher(obs: dict[str, Any]) -> Any:
    """Action 2 on the way, the bit at the door. [B] actions."""
    at_the_door = np.asarray(obs["place"])[:, -1] > 0
    return np.where(at_the_door, np.asarray(obs["bit"]).reshape(-1), 2).astype(np.int64)
