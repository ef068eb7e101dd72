"""Who a policy or a task is: what a stored run or proof must agree with before it is continued.

A file is what its bytes are, together with its normaliser's. An object in Python has no bytes, so it is told by what
it answers on a fixed batch of observations; answers that vary are never the same twice.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import Array, Floats, Observation, Policy, Spec, Task, Teacher

ROWS = 256  # of the fixed batch
WIDE = 1e4  # a range beyond it is drawn from as if it had no bounds
DIGITS = 4  # significant digits of an answer that count: another machine rounds the rest differently


def of_teacher(teacher: Teacher) -> str:
    """The SHA-256 of its file, of file and normaliser where it has one, or of what it answers."""
    digest = teacher.info.sha256 or of_answers(teacher.policy)
    normaliser = str(teacher.info.stated.get("normaliser_sha256", ""))
    return hashlib.sha256(f"{digest}/{normaliser}".encode()).hexdigest() if normaliser else digest


def of_answers(policy: Policy) -> str:
    """The digest of its rows on the fixed batch; of nothing that comes back where they vary from call to call."""
    batch = _batch(policy.spec)
    first, again = _rows(policy, batch), _rows(policy, batch)
    if first.tobytes() != again.tobytes():
        return f"varies-{time.time_ns()}"
    return storage.digest({"rows": _rounded(first)}, policy.head.kind)


def of_task(task: Task) -> dict[str, Any]:
    """Name, spaces, lanes where they are fixed, and what a ready-made vector environment is made of, as plain JSON."""
    spec = task.spec
    return {
        "task": task.name,
        "observation_space": spaces.to_json(spec.observation_space),
        "action_space": spaces.to_json(spec.action_space),
        "lanes": task.max_lanes,
        "made_of": _made_of(task),
    }


def _made_of(task: Task) -> list[str]:
    """Id, time limit and arguments of each environment inside a vector environment that shows them."""
    found = [env.spec for env in getattr(getattr(task, "env", None), "envs", ())]
    return [f"{s.id}, {s.max_episode_steps} steps, {sorted(s.kwargs.items())}" for s in found if s is not None]


def _rows(policy: Policy, batch: Observation) -> Floats:
    return np.array(policy(batch, policy.initial_state(ROWS), np.ones(ROWS, bool)).params, np.float32)


def _rounded(rows: Floats) -> Array:
    exponents = np.floor(np.log10(np.where(rows == 0, 1.0, np.abs(rows).astype(np.float64))))
    scale = 10.0 ** (DIGITS - 1 - exponents)
    return np.round(rows.astype(np.float64) * scale) / scale + 0.0  # + 0.0: minus zero is zero


def _batch(spec: Spec) -> Observation:
    """[ROWS, ...] observations that depend on the space alone."""
    space, rng = spec.observation_space, np.random.default_rng(0)
    if isinstance(space, gym.spaces.Dict):
        return {key: _drawn(part, rng) for key, part in sorted(space.spaces.items())}
    return _drawn(space, rng)


def _drawn(space: gym.Space[Any], rng: np.random.Generator) -> Array:
    if isinstance(space, gym.spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        known = np.isfinite(low) & np.isfinite(high) & (high - low < WIDE)
        inside = np.where(known, low, 0) + rng.random((ROWS, *space.shape)) * np.where(known, high - low, 0)
        free = np.clip(rng.standard_normal((ROWS, *space.shape)), low, high)
        return np.where(known, inside, free).astype(space.dtype)
    own = spaces.from_json(spaces.to_json(space))  # a copy: the environment's generator stays where it is
    own.seed(0)
    return np.stack([np.asarray(own.sample()) for _ in range(ROWS)])
