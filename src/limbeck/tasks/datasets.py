"""A labelled data set as a task of one-step episodes."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import seeding
from limbeck.contracts import Array, Bounds, Lanes, SeedSource, Spec, Step
from limbeck.errors import InputError, missing_library


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

    @property
    def proof_episodes(self) -> int:
        """Rows of the test part: a proof that went on would look at a row twice and count it as news."""
        return len(self.inputs) - self.train_rows - self.validation_rows

    def row(self, seed: int) -> int:
        """The row that a seed stands for; consecutive seeds are different rows until the part is through."""
        match seeding.stage_of(seed):
            case "collect" | "polish" | "train":
                return seed % self.train_rows
            case "proof" | "fidelity" | "golden" | "video":
                return self.train_rows + self.validation_rows + seed % self.proof_episodes
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
