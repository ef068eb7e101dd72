"""Small environments and helpers that the tests of tasks share."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from limbeck import seeding


def seeds(n, stage="verify"):
    return [seeding.episode_seed(0, stage, i) for i in range(n)]


class Compound(gym.Env):
    """A nested observation with text in it; each number says where it came from and when."""

    observation_space = spaces.Dict(
        {
            "pair": spaces.Tuple([spaces.Discrete(5), spaces.Box(-10, 10, (2,), np.float32)]),
            "deep": spaces.Dict({"bits": spaces.MultiBinary(3), "said": spaces.Text(8)}),
            "picture": spaces.Box(0, 255, (2, 2, 1), np.uint8),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), 1.0, False, self.t == 4, {}

    def _seen(self):
        picture = np.full((2, 2, 1), 250 + self.t, np.uint8)
        pair = (np.int64(self.t), np.array([self.t, -self.t], np.float32))
        return {"pair": pair, "deep": {"bits": np.array([1, 0, 1], np.int8), "said": "hello"}, "picture": picture}


class Masked(gym.Env):
    """Only action t mod 5 (and its neighbour) is allowed at step t; another one costs 100. The mask is offered in the
    way that `offer` names."""

    def __init__(self, offer="method", actions=None):
        self.offer = offer
        self.action_space = actions or spaces.Discrete(5)
        self.observation_space = spaces.Box(0, 100, (1,), np.float32)
        if offer == "entry":
            mask = spaces.Box(0, 1, (5,), np.int8)
            self.observation_space = spaces.Dict({"observation": self.observation_space, "action_mask": mask})
        if offer == "method":
            self.action_masks = self._mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), self._info()

    def step(self, action):
        allowed = bool(self._mask()[int(action)])
        self.t += 1
        return self._seen(), 1.0 if allowed else -100.0, self.t == 12, False, self._info()

    def _mask(self):
        mask = np.zeros(5, bool)
        mask[[self.t % 5, (self.t + 1) % 5]] = True
        return mask

    def _info(self):
        return {self.offer: self._mask()} if self.offer in ("action_mask", "action_masks") else {}

    def _seen(self):
        seen = np.array([self.t], np.float32)
        return {"observation": seen, "action_mask": self._mask().astype(np.int8)} if self.offer == "entry" else seen
