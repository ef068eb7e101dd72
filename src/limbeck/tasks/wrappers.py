"""Named wrappers: what a recipe may put around an environment, in the order given.

A name may carry an option after a colon ("pixels:84x84x3"). Each wrapper refuses an environment that it does not fit;
some need the environment built in a certain way, which `make_arguments` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from limbeck.errors import InputError, missing_library, printable, unknown
from limbeck.tasks import observers

Env = gym.Env[Any, Any]
PICTURE = (64, 64, 1)  # pixels: height, width, channels


@dataclass(frozen=True)
class Wrapper:
    """One row of the table."""

    wrap: Callable[[Env, str], Env]  # (environment, option)
    arguments: dict[str, Any] = field(default_factory=dict)  # gymnasium.make has to be called with
    library: str = ""  # only its environments take these arguments
    options: str = ""  # what may follow the colon, in words; "": nothing


def check(names: Sequence[str]) -> None:
    """Refuse unknown names and options that a wrapper does not take."""
    for name in names:
        word, colon, _ = name.partition(":")
        if word not in WRAPPERS:
            raise unknown("wrapper", word, WRAPPERS)
        if colon and not WRAPPERS[word].options:
            raise InputError(f"the wrapper {word!r} takes no option, given {printable(name)!r}. Write {word}.")


def make_arguments(names: Sequence[str], given: dict[str, Any], entry_point: str = "") -> dict[str, Any]:
    """The arguments to build an environment with: those given, and those that the wrappers need.

    `entry_point` is where Gymnasium's record of the id says that the environment comes from; "" without a record.
    """
    arguments = dict(given)
    for name in names:
        row = WRAPPERS[name.partition(":")[0]]
        if row.library and row.library not in entry_point:
            continue  # the wrapper itself refuses what it does not fit
        for key, value in row.arguments.items():
            if arguments.get(key, value) != value:
                raise InputError(
                    f"the wrapper {name!r} needs {key}={value!r}, the recipe's task.kwargs say {arguments[key]!r}. Leave one of them out."
                )
            arguments[key] = value
    return arguments


def wrap(env: Env, names: Sequence[str]) -> Env:
    """The environment inside all wrappers, the first named innermost."""
    for name in names:
        word, _, option = name.partition(":")
        env = WRAPPERS[word].wrap(env, option)
    return env


def _atari(env: Env, option: str) -> Env:
    """gymnasium's AtariPreprocessing: up to 30 no-ops, every fourth frame, 84 x 84 grey, uint8, rewards as they are."""
    if not hasattr(env.unwrapped, "ale"):
        raise InputError(f"the wrapper 'atari' is for ALE environments, given {_name(env)}. Take it off.")
    if getattr(env.unwrapped, "_frameskip", 1) != 1:
        raise InputError("the wrapper 'atari' skips frames itself. Build the environment with frameskip=1.")
    try:
        return gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    except gym.error.DependencyNotInstalled as error:
        raise missing_library("opencv-python-headless", "atari", "the wrapper 'atari'") from error


def _pixels(env: Env, option: str) -> Env:
    shape = PICTURE
    if option:
        found = re.fullmatch(r"(\d{1,3})x(\d{1,3})(?:x([13]))?", option)
        if found is None or 0 in (int(found[1]), int(found[2])):
            raise InputError(
                f"the wrapper 'pixels' was given {printable(option)!r}. Allowed: HEIGHTxWIDTH for grey or HEIGHTxWIDTHx3 for colour, as pixels:64x64."
            )
        shape = (int(found[1]), int(found[2]), int(found[3] or 1))
    if env.render_mode != "rgb_array":
        raise InputError(
            f"the wrapper 'pixels' needs an environment that draws arrays, {_name(env)} was made with render_mode={env.render_mode!r}. Make it with render_mode='rgb_array'."
        )
    return observers.Pixels(env, shape)


def _hide_velocity(env: Env, option: str) -> Env:
    visible = observers.without_velocity(env)
    if visible is None:
        raise InputError(
            f"the wrapper 'hide_velocity' does not know where {_name(env)} keeps velocities. Allowed: CartPole, Pendulum, MountainCar, Acrobot, LunarLander, and MuJoCo tasks that observe qpos and qvel; else use indices."
        )
    return observers.Visible(env, visible)


def _full_grid(env: Env, option: str) -> Env:
    if not hasattr(env.unwrapped, "grid") or not hasattr(env.unwrapped, "agent_dir"):
        raise InputError(f"the wrapper 'full_grid' is for MiniGrid environments, given {_name(env)}. Take it off.")
    return observers.FullGrid(env)


def _ideal_state(env: Env, option: str) -> Env:
    if not hasattr(env.unwrapped, "num_topics"):
        raise InputError(f"the wrapper 'ideal_state' is for SARDINE environments, given {_name(env)}. Take it off.")
    return observers.IdealState(env)


def _frames(env: Env, option: str) -> Env:
    """The last N observations on a new first axis; the first one repeated at an episode's start."""
    if not re.fullmatch(r"[1-9]\d?", option or "4"):
        raise InputError(f"the wrapper 'frames' was given {printable(option)!r}. Allowed: a number, as frames:4.")
    if not isinstance(env.observation_space, gym.spaces.Box):
        raise InputError(
            f"the wrapper 'frames' stacks arrays, {_name(env)} gives {env.observation_space}. Use history."
        )
    return gym.wrappers.FrameStackObservation(env, int(option or "4"), padding_type="reset")


def _flatten(env: Env, option: str) -> Env:
    return observers.Flat(env)


def _name(env: Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


WRAPPERS = {
    "atari": Wrapper(_atari, {"frameskip": 1}, "ale_py"),
    "pixels": Wrapper(_pixels, {"render_mode": "rgb_array"}, options="HEIGHTxWIDTH or HEIGHTxWIDTHx3"),
    "hide_velocity": Wrapper(_hide_velocity),
    "full_grid": Wrapper(_full_grid),
    "ideal_state": Wrapper(_ideal_state),
    "flatten": Wrapper(_flatten),
    "frames": Wrapper(_frames, options="a number of frames"),
}
