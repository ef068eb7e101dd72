"""Bellman targets with the fixed teacher: one step of policy improvement over it, as plain regression.

y_t = sum_{k<n} gamma^k r_{t+k} + gamma^n max_a Q_T(s_{t+n}, a), methods.md's q_bellman. The sum goes on only along the
teacher's greedy actions (Watkins 1989): after another action it would estimate what that action's policy earns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.contracts import Array, Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import printable
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages import values
from limbeck.stages.opening import records_of
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family


@dataclass(frozen=True)
class Rule:
    """How rewards become targets."""

    gamma: float
    steps: int  # n
    reward_scale: float = 1.0  # brings the task's rewards to the units of the teacher's Q
    start: int = 0  # of the executed actions


def missing(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
    """What the run lacks for Bellman targets, None if it lacks nothing."""
    head = teacher.policy.head
    if not values.states_q(teacher) or not isinstance(task.spec.action_space, gym.spaces.Discrete):
        return (
            f"action values for one choice among several; this teacher ({printable(teacher.info.algorithm)}) is {head.kind}. "
            "Needed: DQN, QR-DQN, C51, or kind='q'"
        )
    records = records_of(recipe, task, teacher)
    if records is not None and not records.has_rewards:
        return "rewards, which these recordings do not hold. Needed: recordings with rewards, or the environment"
    if records is not None and records.action is None:
        return "the recorded actions, which these recordings do not hold. Needed: recordings with actions"
    return None


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """ "target" [N] float32, "action" [N] int64 what was done, "known" [N] float32: 1 where the target could be made."""
    recipe = here.run.recipe
    start = int(getattr(here.task.spec.action_space, "start", 0))
    rule = Rule(values.discount(recipe, here.teacher), recipe.imitate.bellman_steps, recipe.imitate.reward_scale, start)
    parts = [of_shard(shard, rule) for shard in data.shards]  # no step leads from one round's file into another's
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("target", "action", "known")}
    if recipe.imitate.bellman_baseline:
        joined["target"] = relative(joined["target"], joined["known"], data.column(values.COLUMN))
    return {name: torch.from_numpy(column) for name, column in joined.items()}, done


def of_shard(shard: Mapping[str, Array], rule: Rule) -> dict[str, Array]:
    """Targets [N], actions [N] and whether they are known [N] for the rows of one round.

    Q is stored as Q - max Q with V = max Q beside it, so max_a Q_T is V itself and nothing is lost by adding them.

    >>> rows = {"first": np.array([True, False]), "terminated": np.array([False, True]), "truncated": np.zeros(2, bool),
    ...         "reward": np.ones(2), "executed": np.array([0, 1]), "teacher/value": np.array([5.0, 4.0]),
    ...         "teacher/params": np.array([[0.0, -1.0], [0.0, -1.0]])}
    >>> of_shard(rows, Rule(gamma=0.5, steps=1))["target"].tolist()
    [3.0, 1.0]
    """
    first, ended = np.asarray(shard["first"]), np.asarray(shard["terminated"])
    reward = rule.reward_scale * np.asarray(shard["reward"], np.float64)
    action = np.asarray(shard["executed"]).reshape(len(first)).astype(np.int64) - rule.start
    goes_on = np.append(~first[1:], False) & ~ended & ~np.asarray(shard["truncated"])  # the next row is what came of it
    after = _next(np.asarray(shard[values.COLUMN], np.float64))
    known = goes_on | ended
    one = reward + rule.gamma * np.where(goes_on, after, 0.0)
    greedy = np.take_along_axis(np.asarray(shard["teacher/params"]), action[:, None], axis=1)[:, 0] >= 0
    sums = one
    for _ in range(rule.steps - 1):
        further = goes_on & _next(greedy & known)
        sums = np.where(further, reward + rule.gamma * _next(sums), one)
    target = np.where(known, sums, 0.0)
    return {"target": target.astype(np.float32), "action": action, "known": known.astype(np.float32)}


def relative(target: Array, known: Array, value: Array) -> Array:
    """Targets [N] less the teacher's value of the state they are for: r + gamma V(s') - V(s) for one step.

    What depends on the state alone changes no action. Without it a student has to learn how far the game is, which is
    mostly far larger than what an action changes. It is the same as shaping the rewards by V_T (Ng et al. 1999).
    """
    wide = np.asarray(target, np.float64) - np.asarray(value, np.float64)
    return np.where(known > 0, wide, 0.0).astype(np.float32)


def _next(column: NDArray[Any]) -> NDArray[Any]:
    """Each row's successor; what stands at the end is never used."""
    return np.append(column[1:], column[:1])
