"""Replay an artefact on golden rows: the half of the golden sequences that needs no environment.

An artefact passes when its parameter rows agree to 1e-5 max(1, |x|) and its actions are the same, except where the
two best choices lie closer than 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, storage
from limbeck.contracts import Array, Floats, Head, Observation, Policy
from limbeck.errors import InputError, printable

TOLERANCE = 1e-5
CLOSE_CALL = 1e-4
FILE = "golden.safetensors"
LOSSY = ("onnx_int8",)  # targets that act differently from their policy
OWN = "answers.safetensors"  # in the folder of a lossy target: what it says itself on the golden rows


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


def answers(policy: Policy, obs: Observation, first: NDArray[np.bool_]) -> tuple[Floats, Array]:
    """Params and executed actions of a policy led through the rows one by one with its memory.

    The action is the artefact's own where it states one (`action`), else read from the row.
    """
    state, params, actions = policy.initial_state(1), [], []
    for row in range(len(first)):
        output = policy(_row(obs, row), state, first[row : row + 1])
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


def replayed(golden: Golden, target: str, policy: Policy, folder: Path) -> tuple[Comparison, str]:
    """A target's policy on the golden rows, and what to say of it; one of a lossy target on its own answers in `folder`."""
    note = f"{golden.rows} golden rows"
    if target not in LOSSY:
        return compare(golden, policy), note
    wanted = own(golden, folder)
    return compare(wanted, policy), f"{note}; {distance(golden, wanted, policy.head)}"


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


def _row(obs: Observation, row: int) -> Observation:
    return {k: v[row : row + 1] for k, v in obs.items()} if isinstance(obs, dict) else obs[row : row + 1]


def load(path: Path) -> Golden:
    """The golden rows of an artefact folder."""
    arrays, meta = storage.read_arrays(path)
    raw: dict[str, Any] = {key.removeprefix("obs/"): v for key, v in arrays.items() if key.startswith("obs/")}
    try:
        obs: Observation = raw[""] if set(raw) == {""} else raw
        return Golden(obs, arrays["first"], arrays["params"], arrays["actions"], int(meta.get("env_steps", "0")))
    except KeyError as error:
        raise InputError(f"{printable(path)} lacks {printable(error)}. Export the policy again.") from error


# ---------------------------------------------------------------- lossy targets


def write_own(golden: Golden, policy: Policy, folder: Path) -> Golden:
    """Store what a lossy artefact says on the golden rows: later it must repeat that."""
    params, actions = answers(policy, golden.obs, golden.first)
    storage.write_arrays(folder / OWN, {"params": params, "actions": actions})
    return replace(golden, params=params, actions=actions)


def own(golden: Golden, folder: Path) -> Golden:
    """The golden rows with a lossy artefact's own answers."""
    arrays, _ = storage.read_arrays(folder / OWN)
    try:
        return replace(golden, params=arrays["params"], actions=arrays["actions"])
    except KeyError as error:
        raise InputError(f"{printable(folder / OWN)} lacks {printable(error)}. Export the policy again.") from error


def distance(golden: Golden, lossy: Golden, head: Head) -> str:
    """How far a lossy artefact's actions are from the policy's, in words."""
    if head.discrete:
        equal = _same_actions(head, golden, lossy.actions).mean()
        return f"lossy: the policy's action in {equal:.1%} of {golden.rows} golden rows"
    off = np.abs(lossy.actions.astype(np.float64) - golden.actions)
    return f"lossy: actions {off.mean():.2g} from the policy's on average, {off.max():.2g} at most, on {golden.rows} golden rows"
