"""The robustness suite: teacher and student under the same disturbances, on the same seeds.

What is measured here is measured, not proved: the levels are many, the episodes few, the intervals 95 % each.

What a return is worth is told by random play. Another world (`dynamics`) is another scale, so random play is played
anew in it. Noise, dropped frames and attacks cannot reach a player that does not look. Delay and stickiness reach its
actions, but the world stays the same one: uniform actions that come late are uniform actions, and those that stick are
only another way of playing blindly. There random play as the environment is remains the floor, one for all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck import rollout
from limbeck.contracts import Episodes, Mode, Policy, Stressed, Task
from limbeck.proof import disturbances, dynamics
from limbeck.proof.attacks import Attacked
from limbeck.proof.disturbances import DISTURBANCES, Spread, Spreads
from limbeck.proof.eprocess import Reals
from limbeck.proof.returns import Triples, retention, retention_interval

NONE = "none"
UNDISTURBED = "as the environment is"


@dataclass(frozen=True)
class Pair:
    """Who is compared, on which episodes."""

    student: Policy
    teacher: Policy
    task: Task
    mode: Mode  # of the teacher; the student is greedy
    seeds: Sequence[int]
    run_seed: int


@dataclass(frozen=True)
class Ground:
    """Undisturbed play, from which everything else is told."""

    row: Stressed
    random: Reals  # [N] returns of random play, the floor wherever the world is the same
    spread: Spread  # of the observation along the teacher's episodes


def cases(names: Sequence[str], task: Task, leave: Callable[[str, str], None]) -> list[tuple[str, float]]:
    """(disturbance, level) in order; what cannot be played here is left out and told to `leave` (name, why)."""
    found = []
    for name in names:
        why = disturbances.obstacle(name, task)
        if why:
            leave(name, why)
        else:
            found += [(name, level) for level in DISTURBANCES[name].levels]
    return found


def ground(pair: Pair) -> Ground:
    """Teacher, student and random play as the environment is; the row bills all three."""
    spreads = Spreads(pair.task.spec)
    teacher = _played(pair, pair.task, pair.teacher, pair.mode, lambda frame: spreads.see(frame.obs, frame.alive))
    student = _played(pair, pair.task, pair.student, "greedy")
    random = _blindly(pair, pair.task)
    row = _row(pair, (NONE, 0.0), student, teacher, random.returns, random.env_steps)
    return Ground(row, random.returns, spreads.spread())


def stressed(pair: Pair, base: Ground, wanted: Sequence[tuple[str, float]]) -> Iterator[Stressed]:
    """One row after another: both play the same seeds under the same draws, each attacked for itself; where the world
    is another, so does random play, and the row bills it."""
    for name, level in wanted:
        task = disturbances.disturbed(name, level, pair.task, base.spread, pair.run_seed)
        student, teacher = (_facing(who, name, level, base.spread) for who in (pair.student, pair.teacher))
        played = _played(pair, task, student, "greedy"), _played(pair, task, teacher, pair.mode)
        if name in dynamics.SHIFTS:
            random = _blindly(pair, task)
            yield _row(pair, (name, level), *played, random.returns, random.env_steps)
        else:
            yield _row(pair, (name, level), *played, base.random)


def kept(row: Stressed) -> str:
    """What the student keeps, with its interval, where the teacher is above random play in all resamples.

    >>> kept(Stressed("none", 0, "", 2.0, 1.0, 0.5, 0.25, 0.75, 8, 0))
    '50.0 % [25.0, 75.0]'
    """
    if not math.isfinite(row.retention):
        return "- (the teacher is not above random play)"
    if not math.isfinite(row.low + row.high):
        return f"{100 * row.retention:.1f} % (no interval: the teacher is hardly above random play)"
    return f"{100 * row.retention:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def level_of(row: Stressed) -> str:
    """The level of a row in its unit.

    >>> level_of(Stressed("delay", 1, "steps", 2.0, 1.0, 0.5, 0.25, 0.75, 8, 0))
    '1 step'
    """
    if row.disturbance == NONE:
        return row.unit
    return f"{row.level:g} {'step' if (row.level, row.unit) == (1, 'steps') else row.unit}"


def _facing(policy: Policy, name: str, level: float, spread: Mapping[str, np.ndarray]) -> Policy:
    return Attacked(policy, level, spread) if name == "adversarial" else policy


def _played(
    pair: Pair, task: Task, policy: Policy, mode: Mode, watch: Callable[[rollout.Frame], None] | None = None
) -> Episodes:
    return rollout.play(policy, task, pair.seeds, mode=mode, run_seed=pair.run_seed, watch=watch)


def _blindly(pair: Pair, task: Task) -> Episodes:
    return rollout.play(None, task, pair.seeds, mode="uniform", run_seed=pair.run_seed)


def _row(
    pair: Pair, case: tuple[str, float], student: Episodes, teacher: Episodes, random: Reals, more_steps: int = 0
) -> Stressed:
    triples = Triples(student.returns, teacher.returns, random)
    low, high = retention_interval(triples, pair.run_seed)
    name, level = case
    unit = UNDISTURBED if name == NONE else disturbances.unit(name, pair.task.spec)
    return Stressed(
        name, level, unit, float(teacher.returns.mean()), float(student.returns.mean()), retention(triples), low, high,
        len(triples), student.env_steps + teacher.env_steps + more_steps, pair.run_seed,
    )  # fmt: skip
