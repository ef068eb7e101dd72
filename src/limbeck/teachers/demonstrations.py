"""Recordings as a teacher: it knows what was done where somebody has been, and nothing else.

Where one observation was recorded with several choices, the answer is their frequencies; several continuous actions
become their mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, spaces
from limbeck.contracts import Array, Floats, Head, Observation, PolicyOutput, Spec, State, Teacher, TeacherInfo
from limbeck.errors import InputError, printable
from limbeck.recordings import Recordings, read, refuse_misfit, spec_of
from limbeck.teachers import stated

MOST_NUMBERS = 2**28  # in the table of answers
SURE = 30.0  # logit of a choice that was never made, below the others


class DemonstratedPolicy:
    """Answers for recorded observations; InputError for any other."""

    def __init__(self, records: Recordings, spec: Spec) -> None:
        if records.action is None:
            raise InputError(f"the recordings {printable(records.name)} hold no actions to learn from. Give a teacher.")
        self.records, self.spec = records, spec
        self.head: Head = spaces.head_for(spec.action_space)
        keys, inverse = np.unique(_keys(records.obs), return_inverse=True)
        self._places = {key: i for i, key in enumerate(keys.tolist())}
        self._rows = _answers(self.head, records.action, inverse.reshape(-1), len(keys), records.name)

    def initial_state(self, batch: int) -> State:
        return {}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        try:
            places = [self._places[key] for key in _keys(obs).tolist()]
        except KeyError:
            raise InputError(
                f"the recordings {printable(self.records.name)} do not say what to do in a state they never saw. Allowed: imitating them where they are; they cannot play or label new states."
            ) from None
        return PolicyOutput(self._rows[places], state)


def load(path: Path, spec: Spec | None) -> Teacher:
    """Recordings as a teacher on the task's spaces, or on those that they state or imply."""
    records = read(path)
    own = records.spec if records.spec is not None else spec or spec_of(records)
    notes = stated.compare_spaces(own, spec) if spec is not None else ()
    if spec is not None:
        refuse_misfit(records, spec.observation_space, spec.name)
    policy = DemonstratedPolicy(records, spec or own)
    return Teacher(
        policy, TeacherInfo(str(path), "recordings", "demonstrations", records.sha256, facts(records), notes=notes)
    )


def facts(records: Recordings) -> dict[str, Any]:
    """What `limbeck inspect` tells of recordings."""
    found: dict[str, Any] = {"episodes": len(records.episodes), "steps": records.rows}
    if records.spec is not None:
        found["observation_space"] = stated.described(records.spec.observation_space)
        found["action_space"] = stated.described(records.spec.action_space)
    if records.has_rewards:
        found["return"] = float(records.returns.mean())
    return found


def _keys(obs: Observation) -> Array:
    """[B] one bytes object per observation."""
    columns = [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]
    flat = [np.ascontiguousarray(c.reshape(len(c), -1)).view(np.uint8).reshape(len(c), -1) for c in columns]
    joined = np.ascontiguousarray(np.concatenate(flat, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1])))[:, 0].astype(object)


def _answers(head: Head, action: Array, inverse: NDArray[np.int64], count: int, name: str) -> Floats:
    """[U, W] the row of each different observation."""
    if count * head.width > MOST_NUMBERS:
        raise InputError(
            f"the recordings {printable(name)} hold {count:,} different states and {head.width:,} numbers to say what was done in each. Allowed: {MOST_NUMBERS:,} numbers in all. Give fewer episodes."
        )
    if not head.discrete:
        flat = action.reshape(len(action), -1).astype(np.float64)
        if flat.shape[1] != sum(head.sizes):
            raise InputError(
                f"the recordings {printable(name)} have actions of {flat.shape[1]} numbers, the task's have {sum(head.sizes)}. Give the environment they were recorded in."
            )
        sums = np.zeros((count, flat.shape[1]))
        np.add.at(sums, inverse, flat)
        return (sums / np.bincount(inverse, minlength=count)[:, None]).astype(np.float32)
    if head.kind == "bernoulli":
        ones = np.zeros((count, head.width))
        np.add.at(ones, inverse, (action.reshape(len(action), -1) > 0).astype(np.float64))
        share = np.clip(ones / np.bincount(inverse, minlength=count)[:, None], 1e-6, 1 - 1e-6)
        return np.log(share / (1 - share)).astype(np.float32)
    chosen = action.reshape(len(action), -1).astype(np.int64) - np.asarray(head.start or 0)
    if chosen.shape[1] != len(head.sizes) or (chosen < 0).any() or (chosen >= np.asarray(head.sizes)).any():
        raise InputError(
            f"the recordings {printable(name)} hold actions outside the task's: {action.min()} to {action.max()}. Give the environment they were recorded in."
        )
    counts = np.zeros((count, head.width))
    for k, begin in enumerate(np.cumsum([0, *head.sizes[:-1]])):
        np.add.at(counts, (inverse, begin + chosen[:, k]), 1.0)
    groups = distributions.groups(head, counts.astype(np.float32))
    logs = [np.log(np.maximum(g / g.sum(axis=1, keepdims=True), np.exp(-SURE))) for g in groups]
    return np.concatenate(logs, axis=1).astype(np.float32)
