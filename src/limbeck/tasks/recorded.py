"""Recordings where there is no environment: recorded episodes replayed, whatever the policy does.

An episode's return is its mean agreement with the teacher, 0..1: step by step 1 for the same choice (the share of equal
factors where there are several), 1 - |difference| / range for bounded numbers, exp(-|difference| / spread) for unbounded
ones. It measures imitation on states somebody else visited; it says nothing of where the student would go.

Where there are too few episodes to hold some out, they are cut into stretches that are episodes of their own: no
stretch crosses an end, and rows between stretches of different parts belong to none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, seeding, spaces
from limbeck.contracts import Array, Bounds, Floats, Head, Lanes, SeedSource, Spec, Step
from limbeck.errors import InputError
from limbeck.recordings import Recordings
from limbeck.tasks.observations import take_rows

TRAIN, VALIDATION = 0.7, 0.15  # shares of the episodes; the rest is the test part
FEWEST = 4  # episodes that can be split so that every part has one
STRETCHES, SHORTEST, GAP = 20, 4, 10  # fewer episodes are cut: into how many, of how many steps, how far apart


@dataclass(frozen=True)
class RecordedTask:
    """Recorded episodes as a task whose observations do not depend on the actions."""

    name: str
    spec: Spec
    records: Recordings
    right: Array | None = None  # [N, ...] executed actions to agree with; None until the teacher has answered
    episodes: tuple[tuple[int, int], ...] = ()  # begin, end row: shuffled once
    bounds: Bounds | None = Bounds(0.0, 1.0, "mean agreement with the teacher, 0 to 1")
    max_lanes: int | None = None
    has_answers: bool = False
    notes: tuple[str, ...] = ()

    @property
    def proof_episodes(self) -> int:
        """Episodes of the test part."""
        return len(self.episodes) - self._train - self._validation

    @property
    def _train(self) -> int:
        return _shares(len(self.episodes))[0]

    @property
    def _validation(self) -> int:
        return _shares(len(self.episodes))[1]

    @cached_property
    def scale(self) -> tuple[Floats | None, NDArray[np.bool_] | None]:
        """Spread and boundedness of each number of an action; None, None for choices."""
        return _scale(self)

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Rows of the training part, episode after episode."""
        return np.concatenate([np.arange(begin, end) for begin, end in self.episodes[: self._train]])

    def episode(self, seed: int) -> tuple[int, int]:
        """The recorded episode that a seed stands for, of the part that its stage may see."""
        match seeding.stage_of(seed):
            case "collect" | "polish" | "train":
                return self.episodes[seed % self._train]
            case "proof" | "fidelity" | "golden" | "video":
                return self.episodes[self._train + self._validation + seed % self.proof_episodes]
        return self.episodes[self._train + seed % self._validation]

    def lanes(self, count: int, seeds: SeedSource, stream: bool = False) -> Lanes:
        return RecordedLanes(self, count, seeds)


def from_recordings(records: Recordings, spec: Spec) -> RecordedTask:
    """A task of recorded episodes on these spaces, split into training, validation and test once and for all."""
    notes: tuple[str, ...] = (
        "no environment: students are held against the teacher on recorded observations, and nothing is proved",
    )
    if len(records.episodes) >= FEWEST:
        episodes = _shuffled(records.episodes)
    else:
        episodes, gap = _stretches(records)
        records = _marked(records, episodes)
        notes += (
            f"fewer than {FEWEST} episodes: training, validation and test are stretches of the same episodes, "
            f"{gap} step{'s' * (gap > 1)} apart",
        )
    return RecordedTask(f"recordings-{records.name}", spec, records, None, tuple(episodes), notes=notes)


def _shares(count: int) -> tuple[int, int]:
    """How many of the shuffled episodes are for training, and how many of the next ones for validation."""
    return min(int(TRAIN * count), count - 2), max(1, int(VALIDATION * count))


def _shuffled(episodes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [episodes[i] for i in seeding.generator(0, "train", len(episodes)).permutation(len(episodes))]


def _stretches(records: Recordings) -> tuple[list[tuple[int, int]], int]:
    """Shuffled stretches, each inside one episode, and how many rows lie between neighbours of different parts."""
    whole = records.episodes
    wanted, counts = max(FEWEST, min(STRETCHES, records.rows // (2 * SHORTEST))), np.ones(len(whole), int)
    lengths = np.array([end - begin for begin, end in whole])
    while counts.sum() < wanted and (lengths // (counts + 1)).max() >= SHORTEST:
        counts[np.argmax(lengths // (counts + 1))] += 1
    if counts.sum() < FEWEST or records.rows < 8 * FEWEST:
        raise InputError(
            f"the recordings {records.name} have {len(whole)} episodes of {records.rows} steps. Needed: {FEWEST} episodes, or {8 * FEWEST} steps, to hold some out."
        )
    cut = []
    for (begin, end), count in zip(whole, counts, strict=True):
        edges = np.linspace(begin, end, count + 1).astype(int).tolist()
        cut += list(itertools.pairwise(edges))
    shuffled = _shuffled(cut)
    train, validation = _shares(len(cut))
    part = {begin: (i >= train) + (i >= train + validation) for i, (begin, _) in enumerate(shuffled)}
    # The shortest stretch keeps three quarters of its rows.
    gap = int(max(1, min(GAP, (lengths // counts)[counts > 1].min() // 4)))
    starts = {begin for begin, _ in whole}
    return [
        (begin, end - gap if end in part and end not in starts and part[end] != part[begin] else end)
        for begin, end in shuffled
    ], gap


def _marked(records: Recordings, stretches: list[tuple[int, int]]) -> Recordings:
    """Every stretch begins and ends as an episode does, so that whoever has a memory starts afresh there."""
    truncated = records.truncated.copy()
    for begin, end in stretches:
        truncated[[end - 1, *([begin - 1] if begin else [])]] = True
    return replace(records, truncated=truncated & ~records.terminated)


class RecordedLanes:
    """B recorded episodes side by side."""

    def __init__(self, task: RecordedTask, count: int, seeds: SeedSource) -> None:
        self._task, self.count, self._seeds = task, count, seeds
        self._seed = np.full(count, -1, np.int64)
        self._row, self._end = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._length = np.ones(count, np.int64)

    def start(self) -> Step:
        for lane in range(self.count):
            self._restart(lane)
        nothing = np.zeros(self.count, bool)
        return self._step(np.zeros(self.count), nothing, nothing.copy(), self._seed >= 0)

    def step(self, actions: Array) -> Step:
        alive = self._seed >= 0
        reward = np.where(alive, self._agreement(np.asarray(actions)) / self._length, 0.0)
        last = alive & (self._row + 1 >= self._end)
        self._row[alive & ~last] += 1
        for lane in np.flatnonzero(last):
            self._restart(int(lane))
        return self._step(reward, last, alive, last & (self._seed >= 0))

    def answers(self) -> None:
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _step(
        self, reward: NDArray[np.float64], ended: NDArray[np.bool_], alive: NDArray[np.bool_], first: NDArray[np.bool_]
    ) -> Step:
        obs = take_rows(self._task.records.obs, self._row)
        return Step(obs, reward, ended, np.zeros(self.count, bool), alive, first, self._seed.copy())

    def _restart(self, lane: int) -> None:
        seed = self._seeds(lane)
        self._seed[lane] = -1 if seed is None else seed
        if seed is not None:
            self._row[lane], self._end[lane] = self._task.episode(seed)
            self._length[lane] = self._end[lane] - self._row[lane]

    def _agreement(self, actions: Array) -> NDArray[np.float64]:
        if self._task.right is None:
            raise InputError(f"{self._task.name} has no teacher's answers yet. Load a teacher for it first.")
        return agreement(actions, self._task.right[self._row], *self._task.scale)


def agreement(
    given: Array, right: Array, spread: Floats | None, bounded: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """[B] how far executed actions agree, 0..1; `spread` [n] and `bounded` [n] for continuous ones.

    >>> agreement(np.array([1, 2]), np.array([1, 0]), None, None).tolist()
    [1.0, 0.0]
    """
    left, other = (np.asarray(a).reshape(len(a), -1) for a in (given, right))
    if spread is None or bounded is None:
        return np.asarray((left == other).mean(axis=1), np.float64)
    distance = np.abs(left.astype(np.float64) - other) / spread
    return np.asarray(np.where(bounded, 1 - np.minimum(distance, 1), np.exp(-distance)).mean(axis=1))


def _scale(task: RecordedTask) -> tuple[Floats | None, NDArray[np.bool_] | None]:
    head: Head = spaces.head_for(task.spec.action_space)
    if head.discrete:
        return None, None
    low, high = distributions.bounds(head)
    bounded = np.isfinite(low) & np.isfinite(high)
    assert task.right is not None
    observed = task.right.reshape(len(task.right), -1).std(axis=0)
    span = np.where(bounded, np.where(bounded, high - low, 1), np.maximum(observed, 1e-6))
    return span.astype(np.float32), bounded
