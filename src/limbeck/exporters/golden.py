"""Golden sequences: what the policy saw and said in visited states, resets included, to hold every artefact against.

Here they are made and written; `replaying` reads them and holds artefacts against them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import rollout, seeding, spaces, storage, tasks
from limbeck.contracts import Array, Observation, Policy, Spec, Task, View
from limbeck.errors import InputError
from limbeck.exporters.replaying import (
    CLOSE_CALL,
    FILE,
    TOLERANCE,
    Comparison,
    Golden,
    answers,
    close_calls,
    compare,
    load,
)

__all__ = [
    "CLOSE_CALL",
    "FILE",
    "TOLERANCE",
    "Comparison",
    "Golden",
    "answers",
    "close_calls",
    "compare",
    "label",
    "load",
    "record",
    "row_bytes",
    "save",
]

MOST_BYTES = 2**20  # of observations that are kept, and again of inputs: images get fewer rows
FEWEST_ROWS = 32


# ---------------------------------------------------------------- making


def record(policy: Policy, task: Task, run_seed: int, steps: int) -> Golden:
    """About `steps` rows of visited states from two episodes or more, so that a reset lies inside.

    Fewer, but FEWEST_ROWS or more of those asked for, where observations are so long that they pass MOST_BYTES.
    """
    steps = min(steps, max(MOST_BYTES // row_bytes(task.spec.observation_space), FEWEST_ROWS))
    share = max(steps // 2, 1)
    episodes: list[tuple[Observation, int]] = []
    played = rows = index = 0
    while rows < steps or len(episodes) < 2:
        count = max(2, index)  # doubling: few environments are built where episodes are short
        seeds = [seeding.episode_seed(run_seed, "golden", index + i) for i in range(count)]
        index += count
        for obs, length in _visited(policy, task, seeds, run_seed, share):
            played += length
            kept = min(length, share, max(steps - rows, 1))
            if rows < steps or len(episodes) < 2:
                episodes.append((tasks.take_rows(obs, slice(0, kept)), kept))
                rows += kept
    first = np.zeros(rows, bool)
    first[np.cumsum([0, *[length for _, length in episodes[:-1]]])] = True
    return label(policy, _join([obs for obs, _ in episodes]), first, played)


def row_bytes(space: gym.Space[Any]) -> int:
    """Bytes of one observation as it is kept."""
    if isinstance(space, gym.spaces.Dict):
        return sum(row_bytes(part) for part in space.spaces.values())
    shape = space.shape or ()
    return max(int(np.prod(shape, dtype=np.int64)), 1) * (space.dtype.itemsize if space.dtype is not None else 8)


def _visited(policy: Policy, task: Task, seeds: list[int], run_seed: int, share: int) -> list[tuple[Observation, int]]:
    """The first `share` observations of each seed's episode, in the order of the seeds, and its length."""
    seen: list[list[Observation]] = [[] for _ in seeds]
    lengths = [0] * len(seeds)

    def watch(frame: rollout.Frame) -> None:
        for row in np.flatnonzero(frame.alive):
            episode = frame.indices[row]
            lengths[episode] += 1
            if lengths[episode] <= share:
                seen[episode].append(tasks.copy_observation(tasks.take_rows(frame.obs, slice(row, row + 1))))

    rollout.play(policy, task, seeds, run_seed=run_seed, slots=1, watch=watch)
    return [(_join(rows), length) for rows, length in zip(seen, lengths, strict=True)]


def _join(parts: list[Observation]) -> Observation:
    if isinstance(parts[0], dict):
        return {key: np.concatenate([p[key] for p in parts if isinstance(p, dict)]) for key in parts[0]}
    return np.concatenate([p for p in parts if not isinstance(p, dict)])


def label(policy: Policy, obs: Observation, first: NDArray[np.bool_], env_steps: int = 0) -> Golden:
    """Golden rows from observations [N, ...] lived one after the other; the first one must begin an episode."""
    if not len(first) or not first[0]:
        raise InputError("golden rows must begin with the first observation of an episode. Mark it in `first`.")
    params, actions = answers(policy, obs, first)
    return Golden(obs, first, params, actions, env_steps)


# ---------------------------------------------------------------- on disk


def save(golden: Golden, path: Path, spec: Spec, view: View) -> None:
    """Raw observations by path, and `input` [N, I]: the flat numbers that the artefact takes.

    `input` is left out where it would pass MOST_BYTES (images): the contract says how it is made from `obs`.
    """
    raw = golden.obs if isinstance(golden.obs, dict) else {"": golden.obs}
    arrays: dict[str, Array] = {f"obs/{key}": np.asarray(value) for key, value in raw.items()}
    if 4 * golden.rows * spaces.input_size(spec.observation_space, view) <= MOST_BYTES:
        arrays["input"] = spaces.input_rows(golden.obs, spec.observation_space, view)
    arrays |= {"first": golden.first, "params": golden.params, "actions": golden.actions}
    storage.write_arrays(path, arrays, {"env_steps": str(golden.env_steps)})
