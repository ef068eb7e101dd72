"""Disturbances between a task and whoever plays it: what comes in is worse, what goes out is late, the world is another.

Every random number belongs to (run seed, disturbance, episode's seed) and is drawn in the same order whatever is played,
so teacher and student meet the same noise, and all levels of a disturbance the same draws.

noise        each number seen is off by level standard deviations (normal), of the number as the teacher sees it; whole
             numbers (pixels, codes) by whole ones, and bits are flipped with probability level
dropped      the policy sees the frame before instead, with probability level, the first one excepted
delay        an action reaches the environment level steps later; the first one is taken until then
sticky       the action before is taken instead, with probability level (Machado et al. 2018)
adversarial  see `attacks`
others       see `dynamics`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from limbeck import seeding, tasks
from limbeck.contracts import Array, Bounds, Lanes, Observation, SeedSource, Spec, Step, Task
from limbeck.errors import InputError, unknown
from limbeck.proof import attacks, dynamics
from limbeck.proof.eprocess import Reals
from limbeck.spaces import MASK

Spread = Mapping[str, Array]  # key of the observation ("" where it has none) -> standard deviation of each number
Flags = NDArray[np.bool_]
SMALL = 0.5  # standard deviations of whole numbers below which rounding would swallow most of the noise


@dataclass(frozen=True)
class Disturbance:
    """How a disturbance is measured, and the levels at which it is played."""

    unit: str
    levels: tuple[float, ...]


DISTURBANCES: dict[str, Disturbance] = {
    "noise": Disturbance("standard deviations", (0.05, 0.1, 0.2)),
    "delay": Disturbance("steps", (1, 2)),
    "sticky": Disturbance("share of steps", (0.1, 0.25)),
    "dropped": Disturbance("share of frames", (0.1, 0.25)),
    "adversarial": Disturbance(f"standard deviations ({attacks.NAME})", (0.05, 0.1)),
    **{name: Disturbance(*found) for name, found in dynamics.SHIFTS.items()},
}


def check(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the order of DISTURBANCES, all of them for none; refuses unknown ones."""
    for name in names:
        if name not in DISTURBANCES:
            raise unknown("disturbance", name, DISTURBANCES)
    return tuple(name for name in DISTURBANCES if not names or name in names)


def unit(name: str, spec: Spec) -> str:
    """In what the levels of a disturbance are told on these observations: of noise it depends on the kind of numbers."""
    if name != "noise":
        return DISTURBANCES[name].unit
    kinds = {_kind(_part(spec, key)) for key in _noisy(spec)}
    words = {"real": DISTURBANCES[name].unit, "whole": f"{DISTURBANCES[name].unit} in whole numbers"}
    told = [words[kind] for kind in ("real", "whole") if kind in kinds][-1:]
    return ", ".join([*told, *["probability of a flipped bit"] * ("bit" in kinds)]) or DISTURBANCES[name].unit


def obstacle(name: str, task: Task) -> str:
    """Why a disturbance cannot be played on this task; "" where it can."""
    if name == "noise":
        return "" if _noisy(task.spec) else "no part of the observation is a number that could be off"
    if name == "adversarial":
        return attacks.obstacle(task.spec)
    if task.proof_episodes is not None:
        return "its episodes are one row each"
    if name in ("delay", "sticky") and tasks.holds_mask(task.spec):
        return "an action of another step may not be allowed in this one"
    return dynamics.obstacle(name, task) if name in dynamics.SHIFTS else ""


def disturbed(name: str, level: float, task: Task, spread: Spread, run_seed: int) -> Task:
    """The task with one disturbance between it and who plays (adversarial: the task itself)."""
    if name == "adversarial":
        return task
    if name in dynamics.SHIFTS:
        return dynamics.shifted(name, level, task)
    return _Disturbed(task, lambda count: _effect(name, level, task, spread, count), run_seed, name)


def _noisy(spec: Spec) -> tuple[str, ...]:
    """Keys of the Boxes that are not the action mask."""
    space = spec.observation_space
    parts = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
    return tuple(key for key, part in parts.items() if isinstance(part, gym.spaces.Box) and key != MASK)


def _part(spec: Spec, key: str) -> gym.spaces.Box:
    """The Box of a key of `_noisy`."""
    space = spec.observation_space
    part = space[key] if isinstance(space, gym.spaces.Dict) else space
    assert isinstance(part, gym.spaces.Box)
    return part


def _kind(box: gym.spaces.Box) -> str:
    """What its numbers are: "real", "whole" (integers), or "bit" for booleans and integers that have two values."""
    if box.dtype.kind not in "iub":
        return "real"
    two = box.dtype.kind == "b" or bool((box.high.astype(np.float64) - box.low.astype(np.float64) <= 1).all())
    return "bit" if two else "whole"


class Spreads:
    """Running standard deviation of every number of the observation, as a watcher of `rollout.play` (Welford 1962)."""

    def __init__(self, spec: Spec) -> None:
        self._keys, self._count = _noisy(spec), 0
        self._mean: dict[str, Reals] = {}
        self._square: dict[str, Reals] = {}

    def see(self, obs: Observation, alive: Flags) -> None:
        """Count the living rows."""
        if not alive.any():
            return
        before, self._count = self._count, self._count + int(alive.sum())
        for key in self._keys:
            rows = np.asarray(obs[key] if isinstance(obs, dict) else obs)[alive].astype(np.float64)
            mean, square = rows.mean(axis=0), ((rows - rows.mean(axis=0)) ** 2).sum(axis=0)
            apart = mean - self._mean.get(key, mean)
            share = len(rows) / self._count
            self._square[key] = self._square.get(key, 0.0) + square + apart**2 * before * share
            self._mean[key] = self._mean.get(key, mean) + apart * share

    def spread(self) -> dict[str, Array]:
        """By key; the numbers' shape is the observation's."""
        return {key: np.sqrt(square / max(self._count, 1)) for key, square in self._square.items()}


# ---------------------------------------------------------------- effects


class Effect(Protocol):
    """What one disturbance does to the B lanes of a task."""

    def act(self, actions: Array, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Array:
        """Actions [B, ...] as they are taken; `first` rows begin an episode."""
        ...

    def see(self, obs: Observation, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Observation:
        """Observations [B, ...] as they are seen; they may be changed in place."""
        ...


@dataclass
class _Quiet:
    """Passes both sides on."""

    level: float

    def act(self, actions: Array, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Array:
        return actions

    def see(self, obs: Observation, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Observation:
        return obs


@dataclass
class _Noise(_Quiet):
    spec: Spec
    spread: Spread

    def see(self, obs: Observation, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Observation:
        for key in _noisy(self.spec):
            column = obs[key] if isinstance(obs, dict) else obs
            box = _part(self.spec, key)
            kind = _kind(box)
            for lane in np.flatnonzero(live):
                drawn = streams[lane].standard_normal(column.shape[1:])
                match kind:
                    case "bit":
                        other = np.where(column[lane] == box.high, box.low, box.high)
                        column[lane] = np.where(_happens(drawn, self.level), other, column[lane])
                    case "whole":
                        off = _whole(drawn, self.level * np.asarray(self.spread[key]))
                        column[lane] = np.clip(column[lane] + off, box.low, box.high).astype(column.dtype)
                    case _:  # real numbers may leave their range, as sensors do
                        column[lane] = (column[lane] + self.level * np.asarray(self.spread[key]) * drawn).astype(
                            column.dtype
                        )
        return obs


def _whole(drawn: Reals, spread: Reals) -> Reals:
    """Whole steps of standard deviation `spread` from normal draws z: rint(spread z), and where that would hardly ever
    be another number than 0 (below SMALL), sign(z) with probability spread^2, which has the same variance.

    >>> _whole(np.array([1.0, -3.0, 1.0, -3.0]), np.array([2.0, 2.0, 0.1, 0.1])).tolist()
    [2.0, -6.0, 0.0, -1.0]
    """
    few = np.where(_happens(drawn, spread**2), np.sign(drawn), 0.0)
    return np.where(spread < SMALL, few, np.rint(spread * drawn))


def _happens(drawn: Reals, probability: Array | float) -> Flags:
    """Events of a probability from normal draws, those of a smaller one among them: P(|Z| >= |z|) < probability."""
    return np.asarray(erfc(np.abs(drawn) / np.sqrt(2.0)) < probability)


@dataclass
class _Dropped(_Quiet):
    before: Observation | None = None

    def see(self, obs: Observation, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Observation:
        for lane in np.flatnonzero(live & ~first):
            if streams[lane].random() < self.level and self.before is not None:
                _repeat(obs, self.before, int(lane))
        self.before = tasks.copy_observation(obs)
        return obs


def _repeat(obs: Observation, before: Observation, lane: int) -> None:
    """The row before, but for the action mask: what is allowed is a rule of the game and no picture of it."""
    if isinstance(obs, dict) and isinstance(before, dict):
        for key in obs:
            if key != MASK:
                obs[key][lane] = before[key][lane]
    elif not isinstance(obs, dict) and not isinstance(before, dict):
        obs[lane] = before[lane]


class _Delay(_Quiet):
    def __init__(self, level: float, count: int) -> None:
        super().__init__(level)
        self._waiting: list[deque[Array]] = [deque() for _ in range(count)]

    def act(self, actions: Array, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Array:
        taken = np.array(actions)
        for lane in np.flatnonzero(live):
            if first[lane]:
                self._waiting[lane] = deque([np.array(actions[lane])] * int(self.level))
            self._waiting[lane].append(np.array(actions[lane]))
            taken[lane] = self._waiting[lane].popleft()
        return taken


@dataclass
class _Sticky(_Quiet):
    before: Array | None = None

    def act(self, actions: Array, live: Flags, first: Flags, streams: list[np.random.Generator]) -> Array:
        taken = np.array(actions)
        for lane in np.flatnonzero(live & ~first):
            if streams[lane].random() < self.level and self.before is not None:
                taken[lane] = self.before[lane]
        self.before = taken
        return np.array(taken)


def _effect(name: str, level: float, task: Task, spread: Spread, count: int) -> Effect:
    match name:
        case "noise":
            return _Noise(level, task.spec, spread)
        case "dropped":
            return _Dropped(level)
        case "delay":
            return _Delay(level, count)
        case "sticky":
            return _Sticky(level)
    raise InputError(f"the disturbance {name!r} has no effect between a task and its player. Name one of DISTURBANCES.")


# ---------------------------------------------------------------- the disturbed task


@dataclass(frozen=True)
class _Disturbed:
    """A task whose lanes pass through an effect."""

    inner: Task
    effect: Callable[[int], Effect]
    run_seed: int
    disturbance: str

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    @property
    def bounds(self) -> Bounds | None:
        return self.inner.bounds

    @property
    def has_answers(self) -> bool:
        return self.inner.has_answers

    @property
    def max_lanes(self) -> int | None:
        return self.inner.max_lanes

    @property
    def proof_episodes(self) -> int | None:
        return self.inner.proof_episodes

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        lanes = self.inner.lanes(count, seeds, stream)
        number = list(DISTURBANCES).index(self.disturbance)
        return _DisturbedLanes(lanes, self.effect(lanes.count), self.run_seed, number)


class _DisturbedLanes:
    """Lanes whose actions and observations pass through an effect; each episode has a random stream of its own."""

    def __init__(self, inner: Lanes, effect: Effect, run_seed: int, number: int) -> None:
        self._inner, self._effect, self._run_seed, self._number = inner, effect, run_seed, number
        self._streams = [seeding.generator(run_seed, "stress", number) for _ in range(inner.count)]
        self._live = self._first = np.zeros(inner.count, bool)

    @property
    def count(self) -> int:
        return self._inner.count

    def start(self) -> Step:
        return self._seen(self._inner.start())

    def step(self, actions: Array) -> Step:
        return self._seen(self._inner.step(self._effect.act(actions, self._live, self._first, self._streams)))

    def _seen(self, step: Step) -> Step:
        self._live, self._first = step.seeds >= 0, step.first.copy()
        for lane in np.flatnonzero(self._live & self._first):
            self._streams[lane] = seeding.generator(self._run_seed, "stress", self._number, int(step.seeds[lane]))
        seen = self._effect.see(tasks.copy_observation(step.obs), self._live, self._first, self._streams)
        return replace(step, obs=seen)

    def answers(self) -> NDArray[np.int64] | None:
        return self._inner.answers()

    def close(self) -> None:
        self._inner.close()
