"""What the numbers of an observation and of an action are called.

Gymnasium's spaces carry no names, so those of its small environments are written down here as its documentation gives
them (https://gymnasium.farama.org/environments), with the actions that MinAtar's games tell of themselves; elsewhere a number is x[i], or KEY[i] of a Dict observation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import gymnasium as gym

from limbeck import spaces
from limbeck.contracts import Blueprint, View

_OBSERVATIONS = {
    "CartPole": ("cart position", "cart velocity", "pole angle", "pole angular velocity"),
    "MountainCar": ("position", "velocity"),
    "MountainCarContinuous": ("position", "velocity"),
    "Acrobot": ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "angular velocity 1", "angular velocity 2"),
    "Pendulum": ("cos angle", "sin angle", "angular velocity"),
    "LunarLander": ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg on ground", "right leg on ground"),
    "LunarLanderContinuous": ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg on ground", "right leg on ground"),
}  # fmt: skip
_MINATAR = ("nothing", "left", "up", "right", "down", "fire")  # its own n, l, u, r, d, f: all of them in -v0
_ACTIONS = {
    "CartPole": ("push left", "push right"),
    "MountainCar": ("push left", "nothing", "push right"),
    "Acrobot": ("torque −1", "torque 0", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
    "MinAtar/Asterix": _MINATAR[:5],
    "MinAtar/Breakout": ("nothing", "left", "right"),
    "MinAtar/Freeway": ("nothing", "up", "down"),
    "MinAtar/Seaquest": _MINATAR,
    "MinAtar/SpaceInvaders": ("nothing", "left", "right", "fire"),
}


def known_names(task: str) -> tuple[Sequence[str], Sequence[str]]:
    """What the numbers of a task's observation, and its actions, are called; empty where nobody has said.

    >>> known_names("MountainCar-v0"), known_names("MountainCarContinuous-v0")[1]
    ((('position', 'velocity'), ('push left', 'nothing', 'push right')), ())
    """
    family = _family(task)
    every = family.startswith("MinAtar/") and family in _ACTIONS and task.endswith("-v0")
    return _OBSERVATIONS.get(family, ()), _MINATAR if every else _ACTIONS.get(family, ())


def observation_names(task: str, count: int) -> list[str]:
    """Names of a flat observation of `count` numbers.

    >>> observation_names("CartPole-v1", 4)[2], observation_names("Unknown-v0", 2)
    ('pole angle', ['x[0]', 'x[1]'])
    """
    known = known_names(task)[0]
    return list(known) if len(known) == count else [f"x[{i}]" for i in range(count)]


def action_name(task: str, action: str) -> str:
    """One executed action in words; `action` is its number, or its numbers where it is continuous.

    >>> action_name("LunarLander-v3", "2"), action_name("Pendulum-v1", "0.5")
    ('main engine', '0.5')
    """
    known = known_names(task)[1]
    return known[int(action)] if action.isdigit() and int(action) < len(known) else action


def input_names(blueprint: Blueprint) -> list[str]:
    """Names of what the first layer reads, in its order: the view's keys, picked places, and the frames of a history."""
    space, view, task = blueprint.spec.observation_space, blueprint.view, blueprint.spec.name
    if isinstance(space, gym.spaces.Dict):
        keys = view.keys if view.keys is not None else sorted(k for k in space.spaces if k != view.mask)
        names = [name for key in keys for name in _of_key(space, key)]
    else:
        names = observation_names(task, spaces.flat_size(space))
    picked = names if view.indices is None else [names[i] for i in view.indices]
    if blueprint.normaliser is not None:
        picked = [f"{name} (normalised)" for name in picked]
    if view.history == 1:
        return picked
    return [f"{name}{_ago(view.history - 1 - frame)}" for frame in range(view.history) for name in picked]


def _of_key(space: gym.spaces.Dict, key: str) -> Sequence[str]:
    count = spaces.flat_size(space, View(keys=(key,)))
    return [key] if count == 1 else [f"{key}[{i}]" for i in range(count)]


def _ago(steps: int) -> str:
    return "" if steps == 0 else f", {steps} step{'s' * (steps > 1)} ago"


def _family(task: str) -> str:
    return re.sub(r"-v\d+$", "", task)
