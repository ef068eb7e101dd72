"""Environment libraries that register nothing until they are asked to, and text that names a factory or a module."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from limbeck.errors import InputError, missing_library, nearest, printable
from limbeck.tasks.quiet import quiet

PLUGINS = {  # start or end of the id: (package to import, library as pip knows it, extra of this package)
    "ALE/": ("ale_py", "ale-py", "atari"),
    "NoFrameskip-v4": ("ale_py", "ale-py", "atari"),
    "MinAtar/": ("minatar.gym", "MinAtar", "minatar"),
    "MiniGrid-": ("minigrid", "minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid", "minigrid"),
    "highway-": ("highway_env", "highway-env", "highway"),
    "merge-": ("highway_env", "highway-env", "highway"),
    "roundabout-": ("highway_env", "highway-env", "highway"),
    "intersection-": ("highway_env", "highway-env", "highway"),
    "racetrack-": ("highway_env", "highway-env", "highway"),
    "parking-": ("highway_env", "highway-env", "highway"),
    "sardine/": ("sardine", "sardine-rec", "recommender"),
}


def register(env_id: str) -> None:
    """Import the library that an id stands for, and have it register its environments."""
    for mark, (package, library, extra) in PLUGINS.items():
        if not (env_id.startswith(mark) or env_id.endswith(mark)):
            continue
        try:
            with quiet():
                module = importlib.import_module(package)
                if hasattr(module, "register_envs"):
                    module.register_envs()
                else:
                    gym.register_envs(module)
        except ImportError as error:
            raise missing_library(library, extra, f"environment {printable(env_id)!r}") from error
        if package == "ale_py":  # its emulator greets on stderr whenever one is made
            module.ALEInterface.setLoggerMode(module.LoggerMode.Error)


def named_factory(text: str) -> Callable[..., gym.Env[Any, Any]] | None:
    """What `package.module:name` stands for where the module has a function or class of that name, else None: an id."""
    module_name, _, name = text.partition(":")
    try:
        with quiet():
            module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"environment {printable(text)!r}: module {printable(module_name)!r} cannot be imported ({printable(error)}). Allowed: package.module:EnvId or package.module:function with an importable module."
        ) from error
    found = getattr(module, name, None)
    return found if callable(found) else None


def spec_of(given: str, env_id: str) -> Any:
    """Gymnasium's record of an id, or an InputError that names the nearest."""
    try:
        with quiet():
            return gym.spec(env_id)
    except (gym.error.Error, ImportError, ValueError) as error:
        raise _unknown_environment(given, env_id) from error


def _unknown_environment(given: str, name: str) -> InputError:
    known = list(gym.registry)
    newest = sorted(k for k in known if k.rsplit("-v", 1)[0] == name.rsplit("-v", 1)[0])
    hint = f"; the version here is {newest[-1]!r}." if newest else nearest(name, known)
    return InputError(
        f"unknown environment {printable(given)!r}{hint} Allowed: a Gymnasium id, package.module:EnvId, package.module:function, pettingzoo/FAMILY.NAME, digits, digits:image, digits:attributes, or mnist."
    )
