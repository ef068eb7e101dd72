"""Golden sequences: what the policy saw and said in visited states, resets included, to hold every artefact against.

An artefact passes when its parameter rows agree to 1e-5 max(1, |x|) and its actions are the same, except where the
two best choices lie closer than 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, rollout, seeding, spaces, storage, tasks
from limbeck.contracts import Array, Floats, Head, Observation, Policy, Spec, Task, View
from limbeck.errors import InputError, printable

TOLERANCE = 1e-5
MOST_BYTES = 2**20  # of observations that are kept, and again of inputs: images get fewer rows
FEWEST_ROWS = 32
CLOSE_CALL = 1e-4
FILE = "golden.safetensors"


@dataclass(frozen=True)
class Golden:
    """N rows in the order they were lived; rows with `first` begin an episode."""

    obs: Observation  # [N, ...]
    first: NDArray[np.bool_]  # [N]
    params: Floats  # [N, W]
    actions: Array  # [N, ...] executed
    env_steps: int = 0  # environment steps it took to visit these states

    @property
    def rows(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Comparison:
    """An artefact's answers against the golden ones."""

    worst_error: float  # greatest |a - b| / max(1, |b|) over params
    actions_equal: float  # share of rows with the same action
    ok: bool


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


def answers(policy: Policy, obs: Observation, first: NDArray[np.bool_]) -> tuple[Floats, Array]:
    """Params and executed actions of a policy led through the rows one by one with its memory.

    The action is the artefact's own where it states one (`action`), else read from the row.
    """
    state, params, actions = policy.initial_state(1), [], []
    for row in range(len(first)):
        output = policy(tasks.take_rows(obs, slice(row, row + 1)), state, first[row : row + 1])
        state = output.state
        params.append(output.params)
        said = output.action
        actions.append(said if said is not None else distributions.act(policy.head, output.params))
    return np.concatenate(params), np.concatenate(actions)


# ---------------------------------------------------------------- comparing


def compare(golden: Golden, policy: Policy) -> Comparison:
    """Replay the golden rows through a policy."""
    params, actions = answers(policy, golden.obs, golden.first)
    size = np.maximum(1.0, np.abs(golden.params, dtype=np.float64))
    error = np.abs(params.astype(np.float64) - golden.params) / size
    worst = float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))
    same = _same_actions(policy.head, golden, actions)
    excused = same | close_calls(policy.head, golden.params)
    return Comparison(worst, float(same.mean()), worst <= TOLERANCE and bool(excused.all()))


def _same_actions(head: Head, golden: Golden, actions: Array) -> NDArray[np.bool_]:
    given, wanted = (a.reshape(golden.rows, -1).astype(np.float64) for a in (actions, golden.actions))
    if head.discrete:
        return np.asarray((given == wanted).all(axis=1))
    low, high = (b.astype(np.float64) for b in distributions.bounds(head))
    span = np.where(np.isfinite(high - low), high - low, 0.0)
    return np.asarray(
        (np.abs(given - wanted) <= TOLERANCE * np.maximum(np.maximum(1.0, np.abs(wanted)), span)).all(axis=1)
    )


def close_calls(head: Head, params: Floats) -> NDArray[np.bool_]:
    """[N] rows where float32 may decide either way: two best choices, or a logit and 0, closer than CLOSE_CALL."""
    close = np.zeros(len(params), bool)
    match head.kind:
        case "categorical" | "q" | "multicategorical":
            for group in distributions.groups(head, params):
                if group.shape[1] > 1:
                    top = np.sort(group, axis=1)[:, -2:]
                    close |= top[:, 1] - top[:, 0] < CLOSE_CALL
        case "bernoulli":
            close |= (np.abs(params) < CLOSE_CALL).any(axis=1)
    return close


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


def load(path: Path) -> Golden:
    """The golden rows of an artefact folder."""
    arrays, meta = storage.read_arrays(path)
    raw: dict[str, Any] = {key.removeprefix("obs/"): v for key, v in arrays.items() if key.startswith("obs/")}
    try:
        obs: Observation = raw[""] if set(raw) == {""} else raw
        return Golden(obs, arrays["first"], arrays["params"], arrays["actions"], int(meta.get("env_steps", "0")))
    except KeyError as error:
        raise InputError(f"{printable(path)} lacks {printable(error)}. Export the policy again.") from error
