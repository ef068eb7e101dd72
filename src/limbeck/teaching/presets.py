"""How to train on which environment: good starts, not laws.

Numbers follow the tuned settings of rl-baselines3-zoo where it has them, with constant rates and without normalisers
or state-dependent exploration, so that the trained file is a plain network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from limbeck.errors import InputError, unknown
from limbeck.settings.ranges import RANGES

LEAST_STEPS = 256
LEAST = {"gradient_steps": -1}  # -1: as many as environment steps


@dataclass(frozen=True)
class Preset:
    """One way to train."""

    env_steps: int
    lanes: int  # environments stepped together
    net: tuple[int, ...]  # hidden layers
    settings: Mapping[str, float] = field(default_factory=dict)  # by their Stable-Baselines3 names


_PPO = {
    "n_steps": 256,
    "batch_size": 256,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "learning_rate": 3e-4,
    "clip_range": 0.2,
}
_DQN = {
    "learning_rate": 6.3e-4,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 1000,
    "gamma": 0.99,
    "target_update_interval": 250,
    "train_freq": 4,
    "gradient_steps": 4,
    "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1,
}


def _ppo(env_steps: int, lanes: int = 8, net: tuple[int, ...] = (64, 64), changes: Mapping[str, float] = {}) -> Preset:
    return Preset(env_steps, lanes, net, {**_PPO, **changes})


def _dqn(env_steps: int, changes: Mapping[str, float] = {}) -> Preset:
    return Preset(env_steps, 1, (256, 256), {**_DQN, **changes})


# fmt: off
PRESETS: dict[str, dict[str, Preset]] = {  # by environment id, else by the kind of the action space
    "ppo": {
        "Discrete": _ppo(200_000),
        "MultiDiscrete": _ppo(200_000),
        "MultiBinary": _ppo(200_000),
        "Box": _ppo(1_000_000, changes={"n_steps": 512}),
        "CartPole-v1": _ppo(100_000, changes={"n_steps": 32, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3}),
        "LunarLander-v3": _ppo(1_250_000, 16, (256, 256), {"n_steps": 1024, "batch_size": 512, "n_epochs": 6, "gamma": 0.999, "gae_lambda": 0.98, "ent_coef": 0.01, "learning_rate": 5e-4}),
        "Acrobot-v1": _ppo(400_000, 16, changes={"n_epochs": 4, "gae_lambda": 0.94}),
        "MountainCar-v0": _ppo(1_000_000, 16, changes={"n_steps": 64, "n_epochs": 4, "gae_lambda": 0.98, "ent_coef": 0.01}),
        "Pendulum-v1": _ppo(200_000, 4, changes={"n_steps": 1024, "batch_size": 64, "gamma": 0.9, "learning_rate": 1e-3}),
    },
    "dqn": {
        "Discrete": _dqn(100_000),
        "CartPole-v1": _dqn(50_000, {"learning_rate": 2.3e-3, "batch_size": 64, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16, "exploration_final_eps": 0.04}),
        "LunarLander-v3": _dqn(200_000, {"buffer_size": 100_000}),
        "MountainCar-v0": _dqn(120_000, {"learning_rate": 4e-3, "buffer_size": 10_000, "gamma": 0.98, "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8, "exploration_fraction": 0.2, "exploration_final_eps": 0.07}),
    },
}
# fmt: on


def preset_for(
    algorithm: str, env: str, action_space: str, env_steps: int | None, changes: Mapping[str, float]
) -> Preset:
    """The preset of an environment id, or of its kind of action space, cut to whole rollouts within `env_steps`.

    >>> preset_for("ppo", "CartPole-v1", "Discrete", 1000, {}).env_steps
    768
    """
    known = PRESETS[algorithm]
    preset = known.get(env) or known[action_space]
    for key in changes:
        if key not in preset.settings:
            raise unknown(f"{algorithm} setting", key, preset.settings)
        least = LEAST.get(key, 1 if isinstance(preset.settings[key], int) else 0)
        if not (math.isfinite(changes[key]) and changes[key] >= least):
            raise InputError(
                f"{algorithm} setting {key} = {changes[key]}, allowed {least} and above, finite. Change it."
            )
    wanted, most = preset.env_steps if env_steps is None else env_steps, int(RANGES["env_steps"][1])
    if not LEAST_STEPS <= wanted <= most:
        raise InputError(
            f"env_steps = {wanted}, allowed at least {LEAST_STEPS:,} and at most {most:,}. Teaching takes tens of thousands of steps."
        )
    return _whole_rollouts(replace(preset, env_steps=wanted, settings={**preset.settings, **changes}))


def _whole_rollouts(preset: Preset) -> Preset:
    """Stable-Baselines3 finishes the rollout it began, which would overrun the budget."""
    settings = dict(preset.settings)
    if "n_steps" in settings:
        settings["n_steps"] = min(int(settings["n_steps"]), preset.env_steps // preset.lanes)
        rollout_steps = int(settings["n_steps"]) * preset.lanes
        settings["batch_size"] = min(int(settings["batch_size"]), rollout_steps)
    else:
        rollout_steps = int(settings["train_freq"]) * preset.lanes
    whole = max(1, preset.env_steps // rollout_steps) * rollout_steps
    return replace(preset, env_steps=whole, settings=settings)
