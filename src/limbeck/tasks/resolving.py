"""From what the user gave to a task."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from limbeck.contracts import Spec, Task
from limbeck.errors import EnvironmentFault, InputError, nearest, printable
from limbeck.tasks.datasets import DatasetTask, digits
from limbeck.tasks.environments import EnvTask
from limbeck.tasks.hanging import watched
from limbeck.tasks.vectors import VectorTask

ALIASES = {"LunarLander-v2": "LunarLander-v3", "LunarLanderContinuous-v2": "LunarLanderContinuous-v3"}
PLUGINS = {  # prefix of the id: (package to import, library as pip knows it)
    "ALE/": ("ale_py", "ale-py"),
    "MinAtar/": ("minatar.gym", "MinAtar"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "highway-": ("highway_env", "highway-env"),
    "sardine/": ("sardine", "sardine-rec"),
}


@dataclass
class _Memo:
    """Builds an environment once for its spaces and hands that one out first."""

    build: Callable[[], gym.Env[Any, Any]]
    built: list[gym.Env[Any, Any]] = field(default_factory=list)

    def __call__(self) -> gym.Env[Any, Any]:
        return self.built.pop() if self.built else self.build()


def resolve(env: str | Task | VectorEnv[Any, Any, Any] | Callable[[], gym.Env[Any, Any]], **kwargs: Any) -> Task:
    """A task from a Gymnasium id, `package.module:EnvId`, "digits", a vector environment, a factory, or a task."""
    if isinstance(env, (EnvTask, VectorTask, DatasetTask)):
        return env
    if isinstance(env, VectorEnv):
        return _from_vector(env)
    if isinstance(env, str):
        return digits() if env == "digits" else _from_id(env, kwargs)
    if callable(env):
        return _from_factory(getattr(env, "__name__", "environment"), env, ())
    return env


def _from_id(given: str, kwargs: dict[str, Any]) -> EnvTask:
    env_id = ALIASES.get(given, given)
    notes = (
        (f"{given} is no longer in Gymnasium; {env_id} is used, verified by the teacher's return",)
        if env_id != given
        else ()
    )
    for prefix, (package, library) in PLUGINS.items():
        if env_id.startswith(prefix):
            _register(package, library)
    module, colon, rest = env_id.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if colon:
                importlib.import_module(module)
            spec = gym.spec(rest if colon else env_id)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"environment {printable(given)!r}: module {printable(module)!r} cannot be imported ({printable(error)}). Allowed: package.module:EnvId with an importable module."
            ) from error
        except gym.error.Error as error:
            raise _unknown_environment(given, error) from error

    def build() -> gym.Env[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gym.make(spec, disable_env_checker=True, **kwargs)

    return _from_factory(env_id, build, notes)


def _from_factory(name: str, build: Callable[[], gym.Env[Any, Any]], notes: tuple[str, ...]) -> EnvTask:
    try:
        with watched(f"{name}.building"):
            first = build()
    except EnvironmentFault:
        raise
    except gym.error.DependencyNotInstalled as error:
        raise InputError(
            f'environment {name!r} needs a library that is not installed: {printable(error)}. Run: pip install "limbeck[envs]"'
        ) from error
    except Exception as error:
        raise EnvironmentFault(
            f"environment {name!r} could not be built: {type(error).__name__} {printable(error)}."
        ) from error
    return EnvTask(name, Spec(first.observation_space, first.action_space, name), _Memo(build, [first]), notes=notes)


def _from_vector(env: VectorEnv[Any, Any, Any]) -> VectorTask:
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise InputError(
            f"the vector environment's metadata say autoreset_mode={mode!r}. Allowed: gymnasium.vector.AutoresetMode NEXT_STEP, SAME_STEP or DISABLED."
        )
    name = env.spec.id if env.spec is not None else type(env).__name__
    return VectorTask(name, Spec(env.single_observation_space, env.single_action_space, name), env, mode)


def _register(package: str, library: str) -> None:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this environment needs {library}, which is not installed. Run: pip install {library}"
        ) from error
    if hasattr(module, "register_envs"):
        module.register_envs()
    else:
        gym.register_envs(module)


def _unknown_environment(given: str, error: Exception) -> InputError:
    name = given.split(":")[-1]
    known = list(gym.registry)
    newest = sorted(k for k in known if k.rsplit("-v", 1)[0] == name.rsplit("-v", 1)[0])
    hint = f"; the version here is {newest[-1]!r}." if newest else nearest(name, known)
    return InputError(
        f"unknown environment {printable(given)!r}{hint} Allowed: a Gymnasium id, package.module:EnvId, or digits."
    )
