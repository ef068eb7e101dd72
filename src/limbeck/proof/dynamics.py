"""Another world: physical constants of known environments, multiplied by a factor (wind: set).

The constants are attributes of the environments of Gymnasium, named in its sources; what is not in the table has no
such disturbance. MuJoCo's models are scaled whole: every body, every geom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym

from limbeck.contracts import Task
from limbeck.errors import InputError
from limbeck.tasks import EnvTask
from limbeck.tasks.hanging import guarded

SHIFTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "gravity": ("times", (0.8, 1.25)),
    "mass": ("times", (0.8, 1.25)),
    "length": ("times", (0.8, 1.25)),
    "force": ("times", (0.8, 1.25)),
    "friction": ("times", (0.5, 2.0)),
    "wind": ("wind power", (10.0, 20.0)),
}

Shift = Callable[[Any, float], None]  # (unwrapped environment, level)


def _times(*names: str) -> Shift:
    """Multiply attributes of the environment itself."""

    def shift(env: Any, level: float) -> None:
        for name in names:
            setattr(env, name, getattr(env, name) * level)

    return shift


def _pole(*names: str) -> Shift:
    """The same of CartPole, whose sums and products of constants are attributes of their own."""

    def shift(env: Any, level: float) -> None:
        _times(*names)(env, level)
        env.total_mass = env.masspole + env.masscart
        env.polemass_length = env.masspole * env.length

    return shift


def _links(mass: float, length: float) -> Shift:
    """Acrobot's two links, whose moments of inertia are a constant of their own: they go with m l^2."""

    def shift(env: Any, level: float) -> None:
        _times("LINK_MASS_1", "LINK_MASS_2")(env, level**mass)
        _times("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_COM_POS_1", "LINK_COM_POS_2")(env, level**length)
        _times("LINK_MOI")(env, level ** (mass + 2 * length))

    return shift


def _wind(env: Any, level: float) -> None:
    """LunarLander's own wind, turned on; its turbulence stays as it was set."""
    env.enable_wind, env.wind_power = True, level


def _model(*names: str) -> Shift:
    """Multiply arrays of a MuJoCo model, and let MuJoCo compute what follows from them."""

    def shift(env: Any, level: float) -> None:
        import mujoco

        for name in names:
            getattr(env.model, name)[:] *= level
        mujoco.mj_setConst(env.model, env.data)

    return shift


def _falls(env: Any, level: float) -> None:
    env.model.opt.gravity[:] *= level


FAMILIES: dict[str, Mapping[str, Shift]] = {  # name of a class that the environment is an instance of
    "CartPoleEnv": {
        "gravity": _times("gravity"), "mass": _pole("masspole"), "length": _pole("length"), "force": _times("force_mag"),
    },
    "LunarLander": {"gravity": _times("gravity"), "wind": _wind},
    "PendulumEnv": {"gravity": _times("g"), "mass": _times("m"), "length": _times("l")},
    "MountainCarEnv": {"gravity": _times("gravity"), "force": _times("force")},
    "Continuous_MountainCarEnv": {"force": _times("power")},
    "AcrobotEnv": {"mass": _links(1, 0), "length": _links(0, 1)},
    "MujocoEnv": {
        "gravity": _falls, "mass": _model("body_mass", "body_inertia"), "friction": _model("geom_friction"),
    },
}  # fmt: skip


def shifts_of(env: gym.Env[Any, Any]) -> Mapping[str, Shift]:
    """What can be shifted of this environment."""
    kinds = {kind.__name__ for kind in type(env.unwrapped).__mro__}
    return next((shifts for name, shifts in FAMILIES.items() if name in kinds), {})


def obstacle(name: str, task: Task) -> str:
    """Why this constant cannot be shifted; "" where it can. Builds the environment once."""
    if not isinstance(task, EnvTask):
        return "the environment is ready-made"
    with guarded(task.name, "building"):
        env = task.make()
        try:
            return "" if name in shifts_of(env) else "no such constant of this environment is known"
        finally:
            env.close()


@dataclass(frozen=True)
class _Shifted:
    """Builds an environment with one constant shifted."""

    make: Callable[[], gym.Env[Any, Any]]
    name: str
    level: float

    def __call__(self) -> gym.Env[Any, Any]:
        env = self.make()
        shifts_of(env)[self.name](env.unwrapped, self.level)
        return env


def shifted(name: str, level: float, task: Task) -> Task:
    """The same task in another world."""
    if not isinstance(task, EnvTask):
        raise InputError(f"{name} of {task.name} cannot be shifted: the environment is ready-made. Name its id.")
    return replace(task, make=_Shifted(task.make, name, level), pool=None)
