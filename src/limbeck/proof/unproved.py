"""What can be said of a student where nothing can be proved: no environment, or a teacher that cannot play."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck import rollout
from limbeck.contracts import Bounds, Policy, Proof, Task
from limbeck.proof.eprocess import Reals
from limbeck.proof.proving import STREAM
from limbeck.proof.returns import Triples, retention, retention_interval
from limbeck.settings import ProveSettings


@dataclass(frozen=True)
class Measured:
    """A student's returns, those they are held against, and why that is no proof."""

    reason: str
    teacher_returns: Sequence[float] | None = None  # recorded ones, not on the same episodes; None: the teacher plays


def measure(
    policy: Policy, teacher: Policy, task: Task, why: Measured, seeds: Sequence[int], bounds: Bounds,
    settings: ProveSettings, *, member: str, played_by: str, run_seed: int,
) -> Proof:  # fmt: skip
    """Play the student (and the teacher where it can) on `seeds`: returns, retention and its 95 % bootstrap interval,
    under the verdict "not proved"."""
    student = rollout.play(policy, task, seeds)
    random = rollout.play(None, task, seeds, mode="uniform", run_seed=run_seed)
    steps = student.env_steps + random.env_steps
    if why.teacher_returns is None:
        taught = rollout.play(teacher, task, seeds)
        returns, steps = taught.returns, steps + taught.env_steps
    else:
        returns = np.resize(np.asarray(why.teacher_returns, np.float64), len(seeds))
    triples = Triples(student.returns, returns, random.returns)
    low, high = retention_interval(triples, run_seed)
    reason = f"{why.reason}; on {len(seeds)} held-out episodes retention is {100 * low:.1f} to {100 * high:.1f} % (95 % bootstrap)"
    return Proof(
        task.name, member, played_by, settings.retain, settings.alpha, "not proved", reason, bounds, STREAM, tuple(seeds),
        _floats(triples.student), _floats(triples.teacher), _floats(triples.random), log_wealth=0.0,
        retention=retention(triples), retention_low=-math.inf, env_steps=steps,
    )  # fmt: skip


def _floats(values: Reals) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
