"""Stable-Baselines3, imported lazily and in this file alone: its models, and our lanes as its environments."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Floats, Head, Lanes, Observation, PolicyOutput, Spec, State
from limbeck.errors import missing_library
from limbeck.teaching.presets import Preset

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

Look = Callable[["BaseAlgorithm"], None]


def library() -> ModuleType:
    """The module, or an InputError that names the line which installs it."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise missing_library("stable-baselines3", "sb3", "teach") from error
    return stable_baselines3


def build(algorithm: str, preset: Preset, seed: int, lanes: Lanes, spec: Spec) -> BaseAlgorithm:
    """An untrained model on the CPU; the policy class follows the observation space."""
    from stable_baselines3.common.preprocessing import is_image_space

    policy = "MlpPolicy"
    if isinstance(spec.observation_space, gym.spaces.Dict):
        policy = "MultiInputPolicy"
    elif is_image_space(spec.observation_space):
        policy = "CnnPolicy"
    wide = {"policy_kwargs": {"net_arch": list(preset.net)}, "seed": seed, "device": "cpu"}
    model: BaseAlgorithm = _class(algorithm)(policy, _vector_env(lanes, spec), **preset.settings, **wide)
    return model


def learn(model: BaseAlgorithm, env_steps: int, every: int, look: Look) -> None:
    """Train; `look` sees the model before the first step, after the last, and about every `every` steps between."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Watcher(BaseCallback):
        """Looks between rollouts, where the weights have just changed."""

        seen = -1

        def _on_rollout_start(self) -> None:
            if self.seen < 0 or self.num_timesteps - self.seen >= every:
                self._look()

        def _on_training_end(self) -> None:
            if self.seen < self.num_timesteps:
                self._look()

        def _on_step(self) -> bool:
            return True

        def _look(self) -> None:
            self.seen = self.num_timesteps
            look(self.model)

    model.learn(env_steps, callback=Watcher())


def save(model: BaseAlgorithm) -> bytes:
    """The model as the bytes of a Stable-Baselines3 zip."""
    content = io.BytesIO()
    model.save(content)
    return content.getvalue()


def load(algorithm: str, path: Path) -> BaseAlgorithm:
    """A zip this program wrote a moment ago: the library's own loader unpickles, which is right for no other file."""
    model: BaseAlgorithm = _class(algorithm).load(path, device="cpu")
    return model


def _class(algorithm: str) -> Any:
    return {"ppo": library().PPO, "dqn": library().DQN}[algorithm]


# ---------------------------------------------------------------- its models as policies


class GreedyPolicy:
    """A model whose rows say its greedy actions and nothing else."""

    def __init__(self, model: BaseAlgorithm, spec: Spec) -> None:
        self._model, self.spec = model, spec
        self.head: Head = spaces.head_for(spec.action_space)

    def initial_state(self, batch: int) -> State:
        return {}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        actions, _ = self._model.predict(obs, deterministic=True)
        return PolicyOutput(_as_rows(self.head, np.asarray(actions).reshape(len(first), -1)), {})


def _as_rows(head: Head, actions: Array) -> Floats:
    """[B, W] rows whose greedy reading is exactly these actions [B, n]."""
    match head.kind:
        case "categorical" | "multicategorical":
            picked = [np.eye(size, dtype=np.float32)[actions[:, i]] for i, size in enumerate(head.sizes)]
            return np.concatenate(picked, axis=1)
        case "bernoulli":
            return actions.astype(np.float32) - np.float32(0.5)
    return actions.astype(np.float32)


# ---------------------------------------------------------------- our lanes as its environments


def _vector_env(lanes: Lanes, spec: Spec) -> VecEnv:
    """Every training episode has a seed of its own, and faults of the environment are told as everywhere else."""
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

    class LanesEnv(VecEnv):
        actions: Array

        def reset(self) -> VecEnvObs:
            return lanes.start().obs

        def step_async(self, actions: Array) -> None:
            self.actions = actions

        def step_wait(self) -> VecEnvStepReturn:
            step = lanes.step(self.actions)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            for lane in np.flatnonzero(step.terminated | step.truncated).tolist():
                cut = bool(step.truncated[lane] and not step.terminated[lane])
                infos[lane] = {"terminal_observation": _row(step.final_obs, lane), "TimeLimit.truncated": cut}
            return step.obs, step.reward.astype(np.float32), step.terminated | step.truncated, infos

        def close(self) -> None:
            """The lanes belong to who made them."""

        def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
            return [None] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
            raise AttributeError(attr_name)

        def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
            raise AttributeError(method_name)

        def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
            return [False] * self.num_envs

    # copies: the library seeds the spaces it is given and samples from them
    return LanesEnv(lanes.count, copy.deepcopy(spec.observation_space), copy.deepcopy(spec.action_space))


def _row(obs: Observation | None, lane: int) -> Any:
    return {k: v[lane] for k, v in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[lane]
