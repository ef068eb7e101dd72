"""Untrained models of Stable-Baselines3 and sb3-contrib over any spaces, and how ours are asked the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from limbeck import distributions, teachers
from limbeck.contracts import Spec, Teacher

BOX = spaces.Box(-1.0, 1.0, (5,), np.float32)
PLANE = spaces.Box(np.array([[-1, 0]], np.float32), np.array([[1, 3]], np.float32))
ACTIONS = spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32))
MIXED = spaces.Dict({"z": BOX, "a": spaces.Discrete(3), "m": spaces.MultiBinary(2)})
LAST = spaces.Box(0, 255, (36, 40, 3), np.uint8)  # an image with its channels last
FIRST = spaces.Box(0, 255, (3, 36, 40), np.uint8)
PICTURES = spaces.Dict(
    {"z": BOX, "front": LAST, "a": spaces.Discrete(3), "side": spaces.Box(0, 255, (36, 36, 1), np.uint8)}
)
ROWS = 60


class Nowhere(gym.Env):
    """An environment of given spaces in which nothing depends on anything."""

    def __init__(self, observation: gym.Space, action: gym.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


def made(algorithm: Any, observation: gym.Space, action: gym.Space, policy: str = "", **kwargs: Any) -> Any:
    """A model with random weights large enough that actions differ between observations."""
    policy = policy or ("MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy")
    name = algorithm.__name__
    sizes: dict[str, Any] = {} if name == "ARS" else {"buffer_size": 8}
    if name in ("PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO"):
        sizes = {"n_steps": 8}
    model = algorithm(policy, Nowhere(observation, action), seed=0, device="cpu", **sizes, **copy.deepcopy(kwargs))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            spread = 2.0 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, buffer in model.policy.named_buffers():  # running statistics of batch normalisation
            if name.endswith(("ra_mean", "ra_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def drawn(space: gym.Space, count: int = 200) -> Any:
    """Observations of the space; images of every brightness, for noise looks all the same to a convolution."""
    if isinstance(space, spaces.Dict):
        return {key: drawn(part, count) for key, part in space.spaces.items()}
    space.seed(1)
    rows = np.stack([space.sample() for _ in range(count)])
    if space.dtype != np.uint8:
        return rows
    brightness = np.random.default_rng(1).random((count,) + (1,) * (rows.ndim - 1))
    return (rows * brightness).astype(np.uint8)


def acted(teacher: Teacher, obs: Any) -> tuple[Any, Any]:
    """(executed greedy actions, what the policy said)."""
    count = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
    output = teacher.policy(obs, teacher.policy.initial_state(count), np.ones(count, bool))
    return distributions.act(teacher.policy.head, output.params), output


def reloaded(model: Any, folder: Path, observation: gym.Space, action: gym.Space) -> Teacher:
    """What we make of the model's file on these spaces of a task."""
    model.save(folder / "m.zip")
    return teachers.load(folder / "m.zip", Spec(observation, action, "nowhere"))


def agrees(teacher: Teacher, model: Any, obs: Any) -> None:
    """The greedy action on every row, and the value where the program's policy has one."""
    wanted = model.predict(obs, deterministic=True)[0]
    actions, output = acted(teacher, obs)
    assert actions.shape == wanted.shape
    if teacher.policy.head.discrete:
        assert np.array_equal(actions, wanted)
        assert len(np.unique(wanted, axis=0)) > 1, "the weights leave no choice to agree on"
    else:
        np.testing.assert_allclose(actions, wanted, rtol=1e-5, atol=1e-5)
        assert wanted.std() > 0
    if not hasattr(model.policy, "predict_values"):
        assert output.value is None
        return
    with torch.no_grad():
        value = model.policy.predict_values(model.policy.obs_to_tensor(obs)[0]).numpy()[:, 0]
    np.testing.assert_allclose(output.value, value, rtol=1e-4, atol=1e-4)
