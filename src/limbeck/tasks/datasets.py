"""A labelled data set as a task of one-step episodes: one label per row (Discrete) or several 0/1 labels (MultiBinary)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import seeding
from limbeck.contracts import Array, Bounds, Lanes, SeedSource, Spec, Step
from limbeck.errors import InputError, missing_library

Part = Literal["train", "validation", "test"]
Size = tuple[int, int, int]  # height, width, channels
DIGITS = ("digits", "digits:image", "digits:attributes")
ATTRIBUTES = {  # of a digit: four yes-or-no questions about one picture
    "even": (0, 2, 4, 6, 8),
    "more than four": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "has a loop": (0, 6, 8, 9),
}


@dataclass(frozen=True)
class DatasetTask:
    """One-step episodes: the seed picks a row, the action is the prediction, the reward is the share of labels right.

    With one label per row the action space is Discrete and the reward 0 or 1; with L labels of 0 or 1 it is
    MultiBinary(L) and the reward a multiple of 1/L. The rows were shuffled once; collection and polishing see the training part, racing and verification the
    validation part, proofs and the gallery the test part, told apart by the stage that a seed carries.
    """

    name: str
    spec: Spec
    inputs: NDArray[np.float32]  # [N, O] or [N, H, W, C], shuffled
    labels: NDArray[np.int64]  # [N], or [N, L] of 0 and 1
    train_rows: int
    validation_rows: int
    bounds: Bounds | None = Bounds(0.0, 1.0, "a prediction is wrong (0) or right (1)")
    max_lanes: int | None = None
    has_answers: bool = True
    notes: tuple[str, ...] = ()
    image: Size | None = None  # how a row is laid out (height, width, channels) where it is a picture, flat rows too
    label_names: tuple[str, ...] = ()  # of the L labels, or of the classes

    @property
    def proof_episodes(self) -> int:
        """Rows of the test part: a proof that went on would look at a row twice and count it as news."""
        return len(self.inputs) - self.train_rows - self.validation_rows

    def part(self, name: Part) -> slice:
        """Rows of a part: students and teachers are trained on "train", chosen on "validation", measured on "test"."""
        begin = {"train": 0, "validation": self.train_rows, "test": self.train_rows + self.validation_rows}[name]
        end = {"train": self.train_rows, "validation": self.train_rows + self.validation_rows, "test": len(self.inputs)}
        return slice(begin, end[name])

    def row(self, seed: int) -> int:
        """The row that a seed stands for; consecutive seeds are different rows until the part is through."""
        match seeding.stage_of(seed):
            case "collect" | "polish" | "train":
                return seed % self.train_rows
            case "proof" | "fidelity" | "golden" | "video" | "gallery":
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
        wanted = self._task.labels[self._row].reshape(self.count, -1)
        right = (np.asarray(actions).reshape(wanted.shape) == wanted).mean(axis=1)
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


def labelled(
    name: str, inputs: Array, labels: Array, classes: int | None = None, seed: int = 0, image: Size | None = None
) -> DatasetTask:
    """A task from arrays: inputs [N, O] or [N, H, W, C]; labels [N] in 0..classes-1, or [N, L] of 0 and 1.

    60 % of the rows are for training, 15 % for validation, 25 % for the test. `image` says how flat rows are laid out.

    >>> import numpy as np
    >>> labelled("toy", np.eye(8), np.arange(8) % 2).train_rows
    4
    """
    x, y = _checked(name, inputs, labels, classes)
    order = seeding.generator(seed, "train", len(x)).permutation(len(x))
    return split(name, x[order], y[order], (int(0.6 * len(x)), int(0.15 * len(x))), classes, image)


def split(
    name: str,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: tuple[int, int],
    classes: int | None,
    image: Size | None,
) -> DatasetTask:
    """A task from rows in their final order, of which `rows` (training, validation) come first and the test last."""
    observation = gym.spaces.Box(float(x.min()), float(x.max()), x.shape[1:], np.float32)
    several = y.ndim == 2
    top = int(y.max()) + 1 if classes is None else classes
    action: gym.Space[Any] = gym.spaces.MultiBinary(y.shape[1]) if several else gym.spaces.Discrete(top)
    meaning = "a share of the labels is right" if several else "a prediction is wrong (0) or right (1)"
    laid_out = image if image is not None else (x.shape[1:] if x.ndim == 4 else None)
    return DatasetTask(name, Spec(observation, action, name), x, y, *rows, Bounds(0.0, 1.0, meaning), image=laid_out)


def _checked(
    name: str, inputs: Array, labels: Array, classes: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, given = np.ascontiguousarray(inputs, np.float32), np.asarray(labels)
    if x.ndim not in (2, 4) or given.shape[:1] != x.shape[:1] or given.ndim not in (1, 2) or len(x) < 8:
        raise InputError(
            f"inputs {x.shape} and labels {given.shape} do not fit. Allowed: [N, O] or [N, H, W, C], and [N] or [N, L], with N >= 8."
        )
    if not np.isfinite(x).all():
        raise InputError(f"{name}: the inputs hold NaN or infinite numbers. Clean them first.")
    most = 1 if given.ndim == 2 else (classes - 1 if classes else np.iinfo(np.int32).max)
    whole = np.isfinite(given).all() and (given == np.floor(given)).all()
    if not whole or given.min() < 0 or given.max() > most:
        raise InputError(
            f"{name}: the labels run from {given.min():g} to {given.max():g}. Allowed: whole numbers from 0 to {most:,}"
            f"{', for each of several labels' if given.ndim == 2 else ''}."
        )
    return x, given.astype(np.int64)


def digits(kind: str = "digits") -> DatasetTask:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 0..1.

    "digits" gives flat rows [64], "digits:image" pictures [8, 8, 1], "digits:attributes" flat rows with four labels of
    0 or 1 each (`ATTRIBUTES`) instead of the digit.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_library("scikit-learn", "trees", "the digits data set") from error
    data = load_digits()
    x, y = data.data / 16.0, data.target
    if kind == "digits:attributes":
        several = np.stack([np.isin(y, members) for members in ATTRIBUTES.values()], axis=1)
        task = labelled(kind, x, several, image=(8, 8, 1))
        return replace(task, label_names=tuple(ATTRIBUTES))
    shaped = x.reshape(-1, 8, 8, 1) if kind == "digits:image" else x
    return replace(labelled(kind, shaped, y, 10, image=(8, 8, 1)), label_names=tuple("0123456789"))
