"""From what the user gave to a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from limbeck.contracts import Spec, Task
from limbeck.errors import EnvironmentFault, InputError, LimbeckError, printable, unknown
from limbeck.tasks import agents, plugins, pooled, wrappers
from limbeck.tasks.border import INFO_KEYS, MASK, Border, holds_mask, simple_space, with_mask
from limbeck.tasks.datasets import DIGITS, DatasetTask, digits
from limbeck.tasks.environments import EnvTask
from limbeck.tasks.hanging import guarded, watched
from limbeck.tasks.mnist_files import mnist
from limbeck.tasks.quiet import quiet
from limbeck.tasks.vectors import VectorTask

Backend = Literal["gymnasium", "envpool"]
BACKENDS = ("envpool", "gymnasium")
ALIASES = {"LunarLander-v2": "LunarLander-v3", "LunarLanderContinuous-v2": "LunarLanderContinuous-v3"}
Build = Callable[[], gym.Env[Any, Any]]


@dataclass
class _Memo:
    """Builds an environment once for its spaces and hands that one out first."""

    build: Build
    built: list[gym.Env[Any, Any]] = field(default_factory=list)

    def __call__(self) -> gym.Env[Any, Any]:
        return self.built.pop() if self.built else self.build()


def resolve(
    env: str | Task | VectorEnv[Any, Any, Any] | Build,
    wrappers: Sequence[str] = (),
    backend: Backend = "gymnasium",
    **kwargs: Any,
) -> Task:
    """A task from a Gymnasium id, `package.module:EnvId`, `package.module:function`, `pettingzoo/FAMILY.NAME`,
    `mpe2/NAME`, a labelled set (`DIGITS`, `mnist`, `mnist:PATH`), a vector environment, a factory, or a task.

    `wrappers` are names of `tasks.WRAPPERS`, the innermost first; `backend` "envpool" collects in envpool's port of the
    environment, while verification, races and proofs stay in Gymnasium's; `kwargs` go to whatever builds it.
    """
    _check(env, wrappers, backend)
    if isinstance(env, (EnvTask, VectorTask, DatasetTask)):
        return env
    if isinstance(env, VectorEnv):
        return _from_vector(env)
    if isinstance(env, str):
        if _is_labelled_set(env):
            return digits(env) if env in DIGITS else mnist(env)
        return _from_text(env, wrappers, backend, kwargs)
    if callable(env):
        return _from_factory(getattr(env, "__name__", "environment"), env, (), wrappers)
    return env


def _check(env: object, names: Sequence[str], backend: str) -> None:
    """Refuse options that this kind of environment does not take."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    wrappers.check(names)
    single = not _is_labelled_set(env) if isinstance(env, str) else callable(env) and not isinstance(env, VectorEnv)
    if names and not single:
        raise InputError(
            f"wrappers {', '.join(names)} cannot be put around what is ready-made. Wrap it yourself, or name a Gymnasium id."
        )
    if backend != "gymnasium" and not (single and isinstance(env, str)):
        raise InputError(f"backend {backend!r} needs an environment's id. Name one, or use backend gymnasium.")


def _is_labelled_set(env: str) -> bool:
    return env in DIGITS or env.partition(":")[0] == "mnist"


def _from_text(given: str, names: Sequence[str], backend: Backend, kwargs: dict[str, Any]) -> EnvTask:
    env_id = ALIASES.get(given, given)
    notes = (
        (f"{given} is no longer in Gymnasium; {env_id} is used, verified by the teacher's return",)
        if env_id != given
        else ()
    )
    build, steps = _builder(given, env_id, names, kwargs)
    task = _from_factory(env_id, build, notes, names)
    if backend == "gymnasium":
        return task
    pool = pooled.pool_of(env_id, task.name, task.spec, names, kwargs, steps)
    note = "envpool's port of the environment is used to collect; verification, races and proofs use Gymnasium's"
    return replace(task, pool=pool, notes=(*task.notes, note))


def _builder(given: str, env_id: str, names: Sequence[str], kwargs: dict[str, Any]) -> tuple[Build, int | None]:
    """What builds the environment that a text names, and its time limit where it has one."""
    if env_id.startswith(agents.PREFIXES):
        arguments = wrappers.make_arguments(names, kwargs)
        return lambda: agents.build_team(given, arguments), None
    plugins.register(env_id)
    if ":" in env_id:
        factory = plugins.named_factory(env_id)
        if factory is not None:
            arguments = wrappers.make_arguments(names, kwargs)
            return lambda: factory(**arguments), None
        env_id = env_id.partition(":")[2]
    spec = plugins.spec_of(given, env_id)
    arguments = wrappers.make_arguments(names, kwargs, str(spec.entry_point))
    steps = arguments.get("max_episode_steps", spec.max_episode_steps)
    mujoco = "mujoco" in str(spec.entry_point)

    def build() -> gym.Env[Any, Any]:
        with quiet(mujoco):
            return gym.make(spec, disable_env_checker=True, **arguments)

    return build, steps


def _from_factory(name: str, build: Build, notes: tuple[str, ...], names: Sequence[str] = ()) -> EnvTask:
    def wrapped() -> gym.Env[Any, Any]:
        env = build()
        with quiet():
            return wrappers.wrap(env, names)

    make = wrapped if names else build
    try:
        with watched(f"{name}.building"):
            first = make()
    except LimbeckError:
        raise
    except gym.error.DependencyNotInstalled as error:
        raise InputError(
            f'environment {name!r} needs a library that is not installed: {printable(error)}. Run: pip install "limbeck[envs]"'
        ) from error
    except Exception as error:
        raise EnvironmentFault(
            f"environment {name!r} could not be built: {type(error).__name__} {printable(error)}."
        ) from error
    observation, border, said = simple_space(first.observation_space)
    spec = Spec(observation, first.action_space, name, getattr(first.unwrapped, "agents", 1))
    spec, border, masked = _masked(spec, border, first)
    return EnvTask(name, spec, _Memo(make, [first]), notes=(*notes, *said, *masked), border=border)


def _masked(spec: Spec, border: Border, env: gym.Env[Any, Any]) -> tuple[Spec, Border, tuple[str, ...]]:
    """Where the environment says which actions are allowed. Only a reset shows whether its info does."""
    if holds_mask(spec):
        return spec, border, (f"the observation's entry {MASK!r} says which actions are allowed",)
    source: Literal["method", "info"] = "method"
    key = ""
    if not env.has_wrapper_attr("action_masks"):
        with guarded(spec.name, "reset"):
            _, info = env.reset(seed=0)
        source, key = "info", next((k for k in INFO_KEYS if k in info), "")
        if not key:
            return spec, border, ()
    space, border, notes = with_mask(spec.observation_space, border, spec.action_space, source, key)
    return replace(spec, observation_space=space), border, notes


def _from_vector(env: VectorEnv[Any, Any, Any]) -> VectorTask:
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise InputError(
            f"the vector environment's metadata say autoreset_mode={mode!r}. Allowed: gymnasium.vector.AutoresetMode NEXT_STEP, SAME_STEP or DISABLED."
        )
    name = getattr(getattr(env, "spec", None), "id", None) or type(env).__name__
    with quiet():
        observation, border, notes = simple_space(env.single_observation_space)
        spec = Spec(observation, env.single_action_space, name)
    if pooled.is_pool(env):
        note = "envpool's pools take seeds only when they are made: each wave of episodes is played in a new one"
        return VectorTask(name, spec, pooled.repeatable(env, spec), mode, notes=(*notes, note))
    if holds_mask(spec):
        notes += (f"the observation's entry {MASK!r} says which actions are allowed",)
    elif isinstance(env, SyncVectorEnv) and env.envs[0].has_wrapper_attr("action_masks"):
        space, border, said = with_mask(observation, border, spec.action_space, "method", "")
        spec, notes = replace(spec, observation_space=space), notes + said
    return VectorTask(name, spec, env, mode, notes=notes, border=border)
