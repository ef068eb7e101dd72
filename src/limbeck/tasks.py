"""What a policy is judged on: a Gymnasium environment, a ready-made vector environment, or a labelled data set.

Every episode starts by an explicit reset with its own seed. The lanes below hide Gymnasium's three autoreset modes:
a row is stored only if the step taken from it was `alive`, so reset rows never reach a data set.
"""

from __future__ import annotations

import importlib
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from limbeck import seeding
from limbeck.contracts import Array, Bounds, Lanes, Observation, SeedSource, Spec, Step, Task
from limbeck.errors import EnvironmentFault, InputError, missing_library, nearest, printable

ALIASES = {"LunarLander-v2": "LunarLander-v3", "LunarLanderContinuous-v2": "LunarLanderContinuous-v3"}
PLUGINS = {  # prefix of the id: (package to import, library, extra)
    "ALE/": ("ale_py", "ale-py", "atari"),
    "MinAtar/": ("minatar.gym", "MinAtar", "minatar"),
    "MiniGrid-": ("minigrid", "minigrid", "envs"),
    "highway-": ("highway_env", "highway-env", "envs"),
    "sardine/": ("sardine", "sardine-rec", "envs"),
}


# ---------------------------------------------------------------- an environment that may hang


class Watchdog:
    """Turns a step that never returns into an EnvironmentFault.

    A thread compares a heartbeat with the clock and interrupts the main thread; with `hard_exit` (the command line)
    a hang inside C code, which nothing in Python can interrupt, ends the process with exit code 6.
    """

    limit_seconds = 60.0
    hard_exit = False

    def __init__(self) -> None:
        self._since: float | None = None
        self._what = ""
        self.expired = False
        self._thread: threading.Thread | None = None

    def arm(self, what: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._what, self._since, self.expired = what, time.monotonic(), False
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def disarm(self) -> None:
        self._since = None

    def fault(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._what} did not return within {self.limit_seconds:g} s. Mend the environment, or allow more with --options task.step_timeout=SECONDS."
        )

    def _watch(self) -> None:
        while True:
            time.sleep(min(0.25, self.limit_seconds / 4))
            since = self._since
            if since is None or time.monotonic() - since < self.limit_seconds:
                continue
            if not self.expired:
                self.expired = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            elif self.hard_exit and time.monotonic() - since > self.limit_seconds + 5:
                import os
                import sys

                sys.stderr.write(f"limbeck: {self.fault()}\n")
                os._exit(EnvironmentFault.exit_code)


watchdog = Watchdog()


# ---------------------------------------------------------------- Gymnasium environments, one by one


@dataclass(frozen=True)
class EnvTask:
    """Episodes of a Gymnasium environment that `make` builds."""

    name: str
    spec: Spec
    make: Callable[[], gym.Env[Any, Any]]
    bounds: Bounds | None = None
    max_lanes: int | None = None
    has_answers: bool = False
    notes: tuple[str, ...] = ()

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return EnvLanes(self, count, seeds)


class EnvLanes:
    """B single environments; a finished one is reset at once with the next seed, or idles."""

    def __init__(self, task: EnvTask, count: int, seeds: SeedSource) -> None:
        self._task, self.count, self._seeds = task, count, seeds
        self._envs = [self._guard("building", -1, task.make) for _ in range(count)]
        self._seed = np.full(count, -1, np.int64)
        self._age = np.zeros(count, np.int64)
        self._obs = empty_observation(task.spec, count)

    def start(self) -> Step:
        for lane in range(self.count):
            self._restart(lane)
        self._check_finite(np.zeros(self.count), self._seed >= 0)
        nothing = np.zeros(self.count, bool)
        return Step(
            copy_observation(self._obs),
            np.zeros(self.count),
            nothing,
            nothing.copy(),
            nothing.copy(),
            self._seed >= 0,
            self._seed.copy(),
        )

    def step(self, actions: Array) -> Step:
        reward = np.zeros(self.count)
        terminated, truncated, first = (np.zeros(self.count, bool) for _ in range(3))
        alive = self._seed >= 0
        final = None
        lane = 0
        watchdog.arm(f"{self._task.name}.step")
        try:
            for lane in np.flatnonzero(alive).tolist():
                obs, reward[lane], terminated[lane], truncated[lane], _ = self._envs[lane].step(actions[lane])
                put_row(self._obs, lane, obs)
        except KeyboardInterrupt:
            if watchdog.expired:
                raise watchdog.fault() from None
            raise
        except Exception as error:
            raise self._fault("step", lane, error) from error
        finally:
            watchdog.disarm()
        self._age[alive] += 1
        self._check_finite(reward, alive)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            final = copy_observation(self._obs)
            for lane in ended.tolist():
                self._restart(lane)
                first[lane] = self._seed[lane] >= 0
            self._check_finite(reward, self._seed >= 0)
        return Step(copy_observation(self._obs), reward, terminated, truncated, alive, first, self._seed.copy(), final)

    def answers(self) -> None:
        return None

    def render(self, lane: int) -> Array | None:
        """The picture of one lane, if the environment was made to draw."""
        frame = self._envs[lane].render()
        return np.asarray(frame) if frame is not None else None

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _restart(self, lane: int) -> None:
        seed = self._seeds(int(lane))
        self._seed[lane], self._age[lane] = (-1 if seed is None else seed), 0
        if seed is not None:
            self._guard("reset", lane, lambda: put_row(self._obs, lane, self._envs[lane].reset(seed=int(seed))[0]))

    def _guard(self, what: str, lane: int, call: Callable[[], Any]) -> Any:
        watchdog.arm(f"{self._task.name}.{what}")
        try:
            return call()
        except KeyboardInterrupt:
            if watchdog.expired:
                raise watchdog.fault() from None
            raise
        except Exception as error:
            raise self._fault(what, lane, error) from error
        finally:
            watchdog.disarm()

    def _fault(self, what: str, lane: int, error: Exception) -> EnvironmentFault:
        where = (
            f" at step {self._age[lane]} of the episode with seed {self._seed[lane]}"
            if lane >= 0 and what == "step"
            else ""
        )
        return EnvironmentFault(
            f"{self._task.name} raised {type(error).__name__} in {what}{where}: {printable(error)}. Mend the environment; finished rounds are kept."
        )

    def _check_finite(self, reward: NDArray[np.float64], alive: NDArray[np.bool_]) -> None:
        bad = ~finite_rows(self._obs, self.count) | ~np.isfinite(reward)
        if (bad & alive).any():
            lane = int(np.flatnonzero(bad & alive)[0])
            what = "reward" if not np.isfinite(reward[lane]) else "observation"
            raise EnvironmentFault(
                f"{self._task.name} returned a {what} that is not finite at step {self._age[lane]} of the episode with seed {self._seed[lane]}. Mend the environment; finished rounds are kept."
            )


# ---------------------------------------------------------------- a vector environment that exists already


@dataclass(frozen=True)
class VectorTask:
    """A ready-made `gymnasium.vector.VectorEnv`. It is reset, never closed."""

    name: str
    spec: Spec
    env: VectorEnv[Any, Any, Any]
    mode: AutoresetMode
    bounds: Bounds | None = None
    has_answers: bool = False
    notes: tuple[str, ...] = ()

    @property
    def max_lanes(self) -> int:
        return int(self.env.num_envs)

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return VectorLanes(self, seeds, stream)


class VectorLanes:
    """All lanes are reset together by seed. With `stream` the environment's own autoreset goes on; without it a lane
    that ended idles until all have, and the next wave of seeds resets the whole vector."""

    def __init__(self, task: VectorTask, seeds: SeedSource, stream: bool) -> None:
        self._task, self._seeds, self._stream = task, seeds, stream
        self.count = task.max_lanes
        self._seed = np.full(self.count, -1, np.int64)
        self._idle = np.zeros(self.count, bool)
        self._pending = np.zeros(self.count, bool)  # NEXT_STEP: the coming step of this row is its reset

    def start(self) -> Step:
        return self._wave()

    def _wave(self) -> Step:
        wanted = [self._seeds(lane) for lane in range(self.count)]
        self._idle = np.array([seed is None for seed in wanted])
        self._seed = np.array([-1 if seed is None else seed for seed in wanted], np.int64)
        self._pending[:] = False
        nothing = np.zeros(self.count, bool)
        if self._idle.all():
            obs: Observation = empty_observation(self._task.spec, self.count)
        else:
            seeds: Any = [max(seed, 0) for seed in self._seed.tolist()]  # a list seeds each lane
            obs, _ = self._call("reset", lambda: self._task.env.reset(seed=seeds))
        return Step(
            copy_observation(obs),
            np.zeros(self.count),
            nothing,
            nothing.copy(),
            nothing.copy(),
            ~self._idle,
            self._seed.copy(),
        )

    def step(self, actions: Array) -> Step:
        if self._idle.all():
            return self._wave()
        alive = ~self._idle & ~self._pending
        obs, reward, terminated, truncated, info = self._call("step", lambda: self._task.env.step(actions))
        over = np.asarray(terminated, bool) | np.asarray(truncated, bool)  # idle rows too
        terminated, truncated = np.asarray(terminated, bool) & alive, np.asarray(truncated, bool) & alive
        reward = np.where(alive, np.asarray(reward, np.float64), 0.0)
        self._check_finite(obs, reward, alive)
        first, ended = self._pending.copy(), terminated | truncated
        self._pending[:] = False
        final = info.get("final_obs") if isinstance(info, dict) else None
        if not self._stream:
            first[:] = False
            self._idle |= ended
            self._seed[ended] = -1
            if self._idle.all():
                wave = self._wave()
                return Step(wave.obs, reward, terminated, truncated, alive, wave.first, wave.seeds, None)
            if over.any() and self._task.mode is AutoresetMode.DISABLED:
                obs = self._reset_rows(over)
        elif ended.any():
            self._seed[ended] = -1
            if self._task.mode is AutoresetMode.NEXT_STEP:
                self._pending = ended.copy()
            elif self._task.mode is AutoresetMode.SAME_STEP:
                first |= ended
            else:
                obs = self._reset_rows(ended)
                first |= ended
        return Step(
            copy_observation(obs),
            reward,
            terminated,
            truncated,
            alive,
            first,
            self._seed.copy(),
            final if final is None or isinstance(final, dict) else None,
        )

    def _reset_rows(self, rows: NDArray[np.bool_]) -> Observation:
        obs, _ = self._call("reset", lambda: self._task.env.reset(options={"reset_mask": rows}))
        return obs

    def answers(self) -> None:
        return None

    def close(self) -> None:
        """The environment belongs to the caller."""

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        watchdog.arm(f"{self._task.name}.{what}")
        try:
            return call()
        except KeyboardInterrupt:
            if watchdog.expired:
                raise watchdog.fault() from None
            raise
        except gym.error.Error as error:
            if what == "reset" and "eed" in str(error):
                raise InputError(
                    f'the vector environment {self._task.name} takes no seed per lane, so its episodes cannot be repeated. Make it with vectorization_mode="sync".'
                ) from error
            raise EnvironmentFault(f"{self._task.name}: {printable(error)}. Mend the environment.") from error
        except Exception as error:
            raise EnvironmentFault(
                f"{self._task.name} raised {type(error).__name__} in {what}: {printable(error)}. Mend the environment; finished rounds are kept."
            ) from error
        finally:
            watchdog.disarm()

    def _check_finite(self, obs: Observation, reward: NDArray[np.float64], alive: NDArray[np.bool_]) -> None:
        bad = (~finite_rows(obs, self.count) | ~np.isfinite(reward)) & alive
        if bad.any():
            raise EnvironmentFault(
                f"{self._task.name} returned numbers that are not finite in lane {int(np.flatnonzero(bad)[0])}. Mend the environment."
            )


# ---------------------------------------------------------------- a labelled set


@dataclass(frozen=True)
class DatasetTask:
    """One-step episodes: the seed picks a row, the action is the prediction, the reward is 1 when it is right.

    The rows were shuffled once; collection and polishing see the training part, racing and verification the
    validation part, proofs the test part, told apart by the stage that a seed carries.
    """

    name: str
    spec: Spec
    inputs: NDArray[np.float32]  # [N, O], shuffled
    labels: NDArray[np.int64]  # [N]
    train_rows: int
    validation_rows: int
    bounds: Bounds | None = Bounds(0.0, 1.0, "a prediction is wrong (0) or right (1)")
    max_lanes: int | None = None
    has_answers: bool = True
    notes: tuple[str, ...] = ()

    def row(self, seed: int) -> int:
        """The row that a seed stands for."""
        test = len(self.inputs) - self.train_rows - self.validation_rows
        match seeding.stage_of(seed):
            case "collect" | "polish" | "train":
                return seed % self.train_rows
            case "proof" | "fidelity" | "golden" | "video":
                return self.train_rows + self.validation_rows + seed % test
        return self.train_rows + seed % self.validation_rows

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return DatasetLanes(self, count, seeds)


class DatasetLanes:
    def __init__(self, task: DatasetTask, count: int, seeds: SeedSource) -> None:
        self._task, self.count, self._seeds = task, count, seeds
        self._seed = np.full(count, -1, np.int64)
        self._row = np.zeros(count, np.int64)

    def start(self) -> Step:
        nothing = np.zeros(self.count, bool)
        self._draw(np.ones(self.count, bool))
        return Step(
            self._task.inputs[self._row],
            np.zeros(self.count),
            nothing,
            nothing.copy(),
            nothing.copy(),
            self._seed >= 0,
            self._seed.copy(),
        )

    def step(self, actions: Array) -> Step:
        alive = self._seed >= 0
        right = np.asarray(actions).reshape(self.count) == self._task.labels[self._row]
        self._draw(alive)
        ends = np.zeros(self.count, bool)
        return Step(
            self._task.inputs[self._row],
            np.where(alive, right, 0.0),
            alive.copy(),
            ends,
            alive,
            self._seed >= 0,
            self._seed.copy(),
        )

    def answers(self) -> NDArray[np.int64]:
        return self._task.labels[self._row]

    def close(self) -> None:
        """Nothing is held."""

    def _draw(self, which: NDArray[np.bool_]) -> None:
        for lane in np.flatnonzero(which):
            seed = self._seeds(int(lane))
            self._seed[lane] = -1 if seed is None else seed
            self._row[lane] = self._task.row(seed) if seed is not None else self._row[lane]


def labelled(name: str, inputs: Array, labels: Array, classes: int | None = None, seed: int = 0) -> DatasetTask:
    """A task from arrays: inputs [N, O], labels [N] in 0..classes-1; 60 % training, 15 % validation, 25 % test.

    >>> import numpy as np
    >>> labelled("toy", np.eye(8), np.arange(8) % 2).train_rows
    4
    """
    x, y = np.ascontiguousarray(inputs, np.float32), np.asarray(labels, np.int64)
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) < 8:
        raise InputError(f"inputs {x.shape} and labels {y.shape} do not fit. Allowed: [N, O] and [N] with N >= 8.")
    if not np.isfinite(x).all():
        raise InputError(f"{name}: the inputs hold NaN or infinite numbers. Clean them first.")
    order = seeding.generator(seed, "train", len(x)).permutation(len(x))
    observation = gym.spaces.Box(float(x.min()), float(x.max()), (x.shape[1],), np.float32)
    spec = Spec(observation, gym.spaces.Discrete(classes or int(y.max()) + 1), name)
    return DatasetTask(name, spec, x[order], y[order], int(0.6 * len(x)), int(0.15 * len(x)))


def digits() -> DatasetTask:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 0..1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_library("scikit-learn", "trees", "the digits data set") from error
    data = load_digits()
    return labelled("digits", data.data / 16.0, data.target, 10)


# ---------------------------------------------------------------- from what the user gave to a task


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
    for prefix, (package, library, extra) in PLUGINS.items():
        if env_id.startswith(prefix):
            _register(package, library, extra)
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
        first = build()
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


def _register(package: str, library: str, extra: str) -> None:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise missing_library(library, extra, "this environment") from error
    if hasattr(module, "register_envs"):
        module.register_envs()
    else:
        gym.register_envs(module)


def _unknown_environment(given: str, error: Exception) -> InputError:
    name = given.split(":")[-1]
    known = list(gym.registry)
    newest = sorted(k for k in known if k.rsplit("-v", 1)[0] == name.rsplit("-v", 1)[0])
    hint = f"; the version here is {newest[-1]!r}" if newest else nearest(name, known)
    return InputError(
        f"unknown environment {printable(given)!r}{hint} Allowed: a Gymnasium id, package.module:EnvId, or digits."
    )


# ---------------------------------------------------------------- observations as batches


def empty_observation(spec: Spec, batch: int) -> Observation:
    """Zeros of the space's dtype with leading axis B."""
    space = spec.observation_space
    if isinstance(space, gym.spaces.Dict):
        return {k: np.zeros((batch, *(v.shape or ())), v.dtype) for k, v in space.spaces.items()}
    return np.zeros((batch, *(space.shape or ())), space.dtype)


def put_row(batch: Observation, row: int, obs: Any) -> None:
    if isinstance(batch, dict):
        for key, column in batch.items():
            column[row] = obs[key]
    else:
        batch[row] = obs


def copy_observation(obs: Observation) -> Observation:
    return {k: np.array(v) for k, v in obs.items()} if isinstance(obs, dict) else np.array(obs)


def take_rows(obs: Observation, rows: Any) -> Observation:
    return {k: v[rows] for k, v in obs.items()} if isinstance(obs, dict) else obs[rows]


def finite_rows(obs: Observation, batch: int) -> NDArray[np.bool_]:
    """[B] whether every number of a row is finite."""
    if isinstance(obs, dict):
        rows = np.ones(batch, bool)
        for column in obs.values():
            rows &= finite_rows(column, batch)
        return rows
    if not np.issubdtype(obs.dtype, np.floating):
        return np.ones(batch, bool)
    return np.asarray(np.isfinite(obs.reshape(batch, -1)).all(axis=1), bool).reshape(batch)
