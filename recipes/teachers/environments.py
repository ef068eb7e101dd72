"""The environments of the teachers: fast vector ones to train in, plain Gymnasium ones to be measured in.

Training may use envpool's ports, because they are fast; the score that is reported always comes from the plain
environment, because a port may differ from what it ports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from ppo import Make

Array = NDArray[Any]
Build = Callable[[], gym.Env[Any, Any]]

PURSUIT = {"n_pursuers": 4, "n_evaders": 10, "x_size": 10, "y_size": 10, "max_cycles": 150, "surround": False}


def several(build: Build) -> Make:
    """Plain environments in one vector environment."""

    def make(count: int, seed: int) -> VectorEnv[Any, Any, Any]:
        return SyncVectorEnv([build] * count, copy=True)

    return make


def pooled(env_id: str) -> Make:
    """envpool's port of `env_id`; it takes its seed when it is made and ignores that of reset."""

    def make(count: int, seed: int) -> VectorEnv[Any, Any, Any]:
        import envpool

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Box precision, and the seed of reset that is ignored
            envs: VectorEnv[Any, Any, Any] = envpool.make(
                env_id, env_type="gymnasium", num_envs=count, num_threads=1, seed=seed
            )
            return _Seeded(envs)

    return make


class _Seeded(VectorEnv[Any, Any, Any]):
    """A vector environment that already has its seed and must not be given another."""

    def __init__(self, envs: Any) -> None:
        self.envs, self.num_envs = envs, int(envs.num_envs if hasattr(envs, "num_envs") else len(envs))
        self.single_observation_space = getattr(envs, "single_observation_space", envs.observation_space)
        self.single_action_space = getattr(envs, "single_action_space", envs.action_space)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.envs.reset()

    def step(self, actions: Any) -> Any:
        if np.issubdtype(actions.dtype, np.integer):
            actions = actions.astype(np.int32)
        return self.envs.step(actions)

    def close(self, **unused: Any) -> None:
        self.envs.close()


# ---------------------------------------------------------------- plain environments


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


def halfcheetah() -> gym.Env[Any, Any]:
    return gym.make("HalfCheetah-v5")


def doorkey() -> gym.Env[Any, Any]:
    """Observation: dict with `image` [7, 7, 3] uint8, `direction`, `mission`."""
    import minigrid

    gym.register_envs(minigrid)
    return gym.make("MiniGrid-DoorKey-5x5-v0")


def doorkey_image() -> gym.Env[Any, Any]:
    """Observation: the image alone, [7, 7, 3] uint8."""
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(doorkey())


def breakout() -> gym.Env[Any, Any]:
    """MinAtar's Breakout, 3 actions, sticky 0.1; it has no time limit of its own. Observation: [10, 10, 4] bool."""
    import minatar.gym

    if "MinAtar/Breakout-v1" not in gym.registry:
        minatar.gym.register_envs()
    return gym.make("MinAtar/Breakout-v1", max_episode_steps=5000)


def highway() -> gym.Env[Any, Any]:
    import highway_env

    gym.register_envs(highway_env)
    return gym.make("highway-fast-v0")


def sardine_rerank() -> gym.Env[Any, Any]:
    """A slate of 10 of 10 items for a user whose state is seen: taste, recent topics, boredom, [30] float32."""
    import sardine
    from sardine.wrappers import IdealState

    gym.register_envs(sardine)
    return IdealState(gym.make("sardine/SlateRerank-Static-v0"))


def pong() -> gym.Env[Any, Any]:
    """ALE/Pong-v5 with sticky actions 0.25, skip 4, 84x84 grey, 4 frames: [4, 84, 84] uint8."""
    import ale_py
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    gym.register_envs(ale_py)
    env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.25)
    return FrameStackObservation(AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84, scale_obs=False), 4)


def pong_vector(count: int, seed: int) -> VectorEnv[Any, Any, Any]:
    """The same with ale-py's own vector environment; its class defaults are no stickiness and clipped rewards."""
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(
        "pong",
        count,
        num_threads=1,
        repeat_action_probability=0.25,
        reward_clipping=False,
        noop_max=30,
        frameskip=4,
        stack_num=4,
        img_height=84,
        img_width=84,
        grayscale=True,
        maxpool=True,
        use_fire_reset=False,
        episodic_life=False,
    )


# ---------------------------------------------------------------- a team


class Pursuit(gym.Env[Array, Array]):
    """PettingZoo's pursuit as one environment: the observations and actions of 4 pursuers side by side.

    Observation [4, 7, 7, 3] float32, action [4] of 5 moves, reward the mean over the pursuers, who share it anyway.
    """

    def __init__(self) -> None:
        from pettingzoo.sisl import pursuit_v5

        self._team = pursuit_v5.parallel_env(**PURSUIT)
        self._names = self._team.possible_agents
        one, moves = self._team.observation_space(self._names[0]), self._team.action_space(self._names[0])
        shape = (len(self._names), *one.shape)
        self.observation_space = gym.spaces.Box(float(one.low.min()), float(one.high.max()), shape, np.float32)
        self.action_space = gym.spaces.MultiDiscrete([int(moves.n)] * len(self._names))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return self._rows(self._team.reset(seed=seed)[0]), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        said = dict(zip(self._names, np.asarray(action).tolist(), strict=True))
        obs, reward, terminated, truncated, _ = self._team.step(said)
        mean = float(np.mean(list(reward.values())))
        return self._rows(obs), mean, any(terminated.values()), any(truncated.values()), {}

    def close(self) -> None:
        self._team.close()

    def _rows(self, obs: dict[str, Array]) -> Array:
        return np.stack([obs[name] for name in self._names]).astype(np.float32)


class Members(VectorEnv[Any, Any, Any]):
    """A vector of teams as a vector of their members: member a of team e is row e * agents + a."""

    def __init__(self, build: Build, count: int) -> None:
        self.teams = SyncVectorEnv([build] * count, copy=True)
        one = self.teams.single_observation_space
        assert isinstance(one, gym.spaces.Box)
        assert isinstance(self.teams.single_action_space, gym.spaces.MultiDiscrete)
        self.agents = one.shape[0]
        self.num_envs = count * self.agents
        self.single_observation_space = gym.spaces.Box(one.low[0], one.high[0], one.shape[1:], one.dtype.type)
        self.single_action_space = gym.spaces.Discrete(int(self.teams.single_action_space.nvec[0]))
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = self.teams.reset(seed=seed)
        return self._rows(obs), info

    def step(self, actions: Any) -> Any:
        obs, *numbers, info = self.teams.step(actions.reshape(-1, self.agents))
        return self._rows(obs), *(np.repeat(n, self.agents) for n in numbers), info

    def close(self, **unused: Any) -> None:
        self.teams.close()

    def _rows(self, obs: Array) -> Array:
        return obs.reshape(self.num_envs, *self.single_observation_space.shape)


def pursuers(count: int, seed: int) -> VectorEnv[Any, Any, Any]:
    """Pursuers of `count` teams, one row each."""
    return Members(Pursuit, count)
