"""Recorded play as plain arrays.

Rows are steps in time order, episode after episode. An observation that no action followed (the last of an episode in
Minari's layout) is not a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Observation, Spec
from limbeck.errors import InputError, printable

MAX_BYTES = 8 * 2**30  # of all arrays together


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
    """Recordings whose arrays agree in length and hold numbers; an end is assumed after the last row."""
    columns: dict[str, Any] = {**(obs if isinstance(obs, dict) else {"obs": obs})}
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
        if value.dtype.kind not in "fiub" or (value.dtype.kind == "f" and not np.isfinite(value).all()):
            raise bad(Path(name), f"its {printable(key)} is {value.dtype} or holds numbers that are not finite")
    ends = np.zeros(rows, bool) if terminated is None else np.asarray(terminated).reshape(rows).astype(bool)
    cut = np.zeros(rows, bool) if truncated is None else np.asarray(truncated).reshape(rows).astype(bool)
    cut[-1] |= not ends[-1]
    return Recordings(
        name, sha256, obs, action, np.zeros(rows, np.float32) if reward is None else reward.reshape(rows).astype(np.float32),
        ends, cut, spec, reward is not None,
    )  # fmt: skip


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
    if not shape:
        return gym.spaces.Discrete(int(column.max()) + 1)
    return gym.spaces.Box(float(column.min()), float(column.max()), shape, np.float32)


def _action_space(action: Array) -> gym.Space[Any]:
    if action.dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, action.shape[1:] or (1,), np.float32)
    if action.ndim == 1 or action.shape[1:] == (1,):
        return gym.spaces.Discrete(int(action.max()) + 1)
    return gym.spaces.MultiDiscrete(action.reshape(len(action), -1).max(axis=0) + 1)


def bad(path: Path, why: str) -> InputError:
    return InputError(
        f"recordings {printable(path)}: {why}. Allowed: obs [N, ...] (or obs/KEY), action [N, ...], reward, terminated, truncated [N]."
    )
