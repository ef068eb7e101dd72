"""Recorded play as plain arrays.

Rows are steps in time order, episode after episode. An observation that no action followed (the last of an episode in
Minari's layout) is not a row.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Observation, Spec
from limbeck.errors import InputError, printable

MAX_BYTES = 8 * 2**30  # of all arrays together
MAX_CHOICES = 100_000  # of one discrete number: rows are as wide
MAX_NAME = 80  # it becomes part of a folder's name


@dataclass(frozen=True)
class Recordings:
    """N steps of E episodes."""

    name: str
    sha256: str
    obs: Observation  # [N, ...] what was seen
    action: Array | None  # [N, ...] what the environment received; None where only observations were kept
    reward: NDArray[np.float32]  # [N], 0 where it was not recorded
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    spec: Spec | None = None  # where the file states its spaces
    has_rewards: bool = True

    @property
    def rows(self) -> int:
        return len(self.reward)

    @property
    def first(self) -> NDArray[np.bool_]:
        """[N] rows that begin an episode."""
        ended = self.terminated | self.truncated
        return np.concatenate([[True], ended[:-1]])

    @property
    def episodes(self) -> list[tuple[int, int]]:
        """Begin and end row of every episode."""
        begins = np.flatnonzero(self.first)
        return list(zip(begins.tolist(), [*begins[1:].tolist(), self.rows], strict=True))

    @property
    def returns(self) -> NDArray[np.float64]:
        """[E] undiscounted returns."""
        return np.array([self.reward[begin:end].sum(dtype=np.float64) for begin, end in self.episodes])


def checked(
    name: str,
    sha256: str,
    obs: Observation,
    action: Array | None,
    reward: Array | None,
    terminated: Array | None,
    truncated: Array | None,
    spec: Spec | None = None,
) -> Recordings:
    """Recordings whose arrays agree in length, hold numbers and fit `spec`; an end is assumed after the last row."""
    name = tidy(name)
    columns: dict[str, Any] = (
        {f"obs/{key}": part for key, part in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    )
    columns |= {
        k: v
        for k, v in {"action": action, "reward": reward, "terminated": terminated, "truncated": truncated}.items()
        if v is not None
    }
    lengths = {key: len(value) if np.ndim(value) else 0 for key, value in columns.items()}
    rows = next(iter(lengths.values()))
    if rows < 1 or len(set(lengths.values())) > 1:
        told = ", ".join(f"{printable(key)} {length}" for key, length in lengths.items())
        raise bad(Path(name), f"its columns have {told} rows; they must have one and the same number")
    for key, value in columns.items():
        _check_column(name, key, value)
    for key in ("reward", "terminated", "truncated"):
        if key in columns and columns[key].size != rows:
            raise bad(Path(name), f"its {key} has the shape {columns[key].shape}; it must have one number per row")
    ends = np.zeros(rows, bool) if terminated is None else np.asarray(terminated).reshape(rows).astype(bool)
    cut = np.zeros(rows, bool) if truncated is None else np.asarray(truncated).reshape(rows).astype(bool)
    cut[-1] |= not ends[-1]
    made = Recordings(
        name, sha256, obs, action, np.zeros(rows, np.float32) if reward is None else reward.reshape(rows).astype(np.float32),
        ends, cut, spec, reward is not None,
    )  # fmt: skip
    if spec is not None:
        refuse_misfit(made, spec.observation_space, "the spaces they state")
    return made


def tidy(name: str) -> str:
    """A name that a folder and a terminal take.

    >>> tidy("../a b/c")
    'a-b-c'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:MAX_NAME] or "recordings"


def content_of(path: Path, most: int) -> bytes:
    """A regular file's bytes, read once. Raises OSError for pipes, devices and what is larger than `most`."""
    with open(path, "rb", opener=_no_waiting) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(f"no regular file of at most {most:,} bytes")
        return stream.read(status.st_size + 1)


def _no_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe without a writer would block for ever


def _check_column(name: str, key: str, value: Array) -> None:
    """Refuse what is no plain number, and numbers that single precision, in which everything is computed, cannot hold."""
    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        raise bad(Path(name), f"its {printable(key)} is {value.dtype}; it must be numbers of at most 64 bits")
    if 0 in value.shape[1:]:
        raise bad(Path(name), f"its {printable(key)} has the shape {value.shape}, which holds no number")
    if value.dtype.kind == "f" and not (np.abs(value) <= np.finfo(np.float32).max).all():
        raise bad(Path(name), f"its {printable(key)} holds numbers that are not finite in single precision")


def refuse_misfit(records: Recordings, space: gym.Space[Any], whose: str) -> None:
    """Raise InputError where observations lack an entry of `space`, or have another shape or range."""
    obs = records.obs
    problems = []
    if isinstance(space, gym.spaces.Dict) != isinstance(obs, dict):
        told = "entries " + ", ".join(sorted(obs)) if isinstance(obs, dict) else "one array"
        problems.append(
            f"they hold {printable(told)}, against {'entries' if isinstance(obs, np.ndarray) else 'one array'}"
        )
    else:
        problems += _misfits(obs if isinstance(obs, dict) else {"": obs}, space)
    if problems:
        raise InputError(
            f"the recordings {records.name} do not fit {printable(whose)}: {printable('; '.join(problems))}. "
            "Give those of this task, wrapped as it was when they were made."
        )


def _misfits(columns: dict[str, Array], space: gym.Space[Any]) -> Iterator[str]:
    for key, part in space.spaces.items() if isinstance(space, gym.spaces.Dict) else [("", space)]:
        shown = key or "observations"
        if key not in columns:
            yield f"no entry {key!r}"
            continue
        column, shape = columns[key], tuple(part.shape or ())
        loose = isinstance(part, (gym.spaces.Discrete, gym.spaces.MultiDiscrete))
        if (column[0].size != max(1, int(np.prod(shape)))) if loose else (column.shape[1:] != shape):
            yield f"{shown} {column.shape[1:]} against {shape}"
        elif isinstance(part, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            start = np.asarray(part.start).reshape(-1)
            stop = start + np.asarray(part.n if isinstance(part, gym.spaces.Discrete) else part.nvec).reshape(-1)
            flat = column.reshape(len(column), -1)
            if (flat < start).any() or (flat >= stop).any():
                yield f"{shown} from {flat.min()} to {flat.max()} against {part}"


def spec_of(records: Recordings) -> Spec:
    """The spaces the recordings state, or else the widest that their arrays allow: what they hold says no more."""
    if records.spec is not None:
        return records.spec
    if records.action is None:
        raise InputError(
            f"the recordings {printable(records.name)} hold no actions and state no spaces, nor does the teacher. Give a teacher that states its spaces."
        )
    obs = records.obs
    space: gym.Space[Any] = (
        gym.spaces.Dict({k: _widest(v) for k, v in obs.items()}) if isinstance(obs, dict) else _widest(obs)
    )
    return Spec(space, _action_space(records.action), records.name)


def _widest(column: Array) -> gym.Space[Any]:
    shape = column.shape[1:]
    if column.dtype == np.uint8:
        return gym.spaces.Box(0, 255, shape, np.uint8)
    if column.dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    if not shape and int(column.min()) >= 0 and int(column.max()) < MAX_CHOICES:
        return gym.spaces.Discrete(int(column.max()) + 1)
    return gym.spaces.Box(float(column.min()), float(column.max()), shape, np.float32)


def _action_space(action: Array) -> gym.Space[Any]:
    if action.dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, action.shape[1:] or (1,), np.float32)
    low, high = int(action.min()), int(action.max())
    if low < 0 or high >= MAX_CHOICES:
        raise InputError(
            f"the recordings' actions go from {low} to {high}. Allowed for choices where no spaces are stated: 0 to {MAX_CHOICES - 1:,}. "
            "Count them from 0, write continuous ones as floats, or give a teacher or environment that states its spaces."
        )
    if action.ndim == 1 or action.shape[1:] == (1,):
        return gym.spaces.Discrete(int(action.max()) + 1)
    return gym.spaces.MultiDiscrete(action.reshape(len(action), -1).max(axis=0) + 1)


def bad(path: Path, why: str) -> InputError:
    return InputError(
        f"recordings {printable(path)}: {why}. Allowed: obs [N, ...] (or obs/KEY), action [N, ...], reward, terminated, truncated [N]."
    )
