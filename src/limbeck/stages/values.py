"""What the teacher thinks a state is worth: V that it states, or max Q."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from limbeck.contracts import Array, Observation, Policy, Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import InputError, printable
from limbeck.objective import Term
from limbeck.polish.shaping import Shaping
from limbeck.settings import Recipe
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family
from limbeck.teachers import modules
from limbeck.teachers.demonstrations import DemonstratedPolicy

COLUMN = "teacher/value"
RANKED = "ARS"  # the algorithm whose scores are no values
GAMMA = 0.99  # where neither the recipe nor the teacher's file states a discount
FLAT = 1e-6  # a spread of values below it says that nothing distinguishes the states


def missing(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
    """What the run lacks for the teacher's value, None if it lacks nothing. Asks the teacher about four made-up rows."""
    return None if states_value(teacher) else lacking(teacher)


def lacking(teacher: Teacher) -> str:
    """What would be needed where a teacher states no value."""
    return (
        f"a teacher that says what a state is worth; this one ({printable(teacher.info.format)}, {printable(teacher.info.algorithm)}) does not. "
        "Needed: an actor-critic with its critic in the file (PPO, A2C, TRPO), or action values (DQN, QR-DQN, C51, kind='q')"
    )


def states_q(teacher: Teacher) -> bool:
    """Whether its rows are action values; those of ARS only rank the actions."""
    return teacher.policy.head.kind == "q" and teacher.info.algorithm != RANKED


def states_value(teacher: Teacher) -> bool:
    """Whether it values what it sees."""
    if teacher.policy.head.kind == "q":
        return states_q(teacher)
    if isinstance(teacher.policy, DemonstratedPolicy):  # it answers for no other rows than its own
        return False
    batch = modules.trial_batch(teacher.policy.spec)
    count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    asked = teacher.policy(batch, teacher.policy.initial_state(count), np.ones(count, bool))
    return asked.value is not None


def refuse_horizon(recipe: Recipe, teacher: Teacher) -> None:
    """Raise InputError for a truncated polish where the teacher cannot judge the state in which an episode is left."""
    if recipe.polish.horizon is None or not recipe.polish.enabled:
        return
    if not states_value(teacher):
        raise InputError(f"polish.horizon needs {lacking(teacher)}. Or drop polish.horizon.")
    if teacher.policy.initial_state(1):
        raise InputError(
            "polish.horizon asks the teacher for the value of single states; this one remembers earlier ones. Drop polish.horizon."
        )


def shaping(recipe: Recipe, teacher: Teacher) -> Shaping | None:
    """How candidates of the polish are judged, None: by the returns of whole episodes."""
    if recipe.polish.horizon is None:
        return None
    return Shaping(recipe.polish.horizon, discount(recipe, teacher), lambda obs, count: of(teacher.policy, obs, count))


def of(policy: Policy, obs: Observation, count: int) -> Array:
    """[B] V of a memoryless policy for B single observations; max Q of action values."""
    output = policy(obs, {}, np.ones(count, bool))
    if policy.head.kind == "q":
        return output.params.max(axis=1)
    if output.value is None:
        raise InputError("the teacher states no value. Give an actor-critic with its critic, or action values.")
    return output.value


def discount(recipe: Recipe, teacher: Teacher) -> float:
    """gamma of the teacher's values: the recipe's, else what its file states, else 0.99."""
    stated = teacher.info.stated.get("gamma")
    if recipe.gamma is not None:
        return recipe.gamma
    return float(stated) if isinstance(stated, (int, float)) and 0 <= stated <= 1 else GAMMA


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """ "value" [N] in the teacher's units, and "value_mean", "value_scale" [] of the first round: a student's value head
    learns (V - mean) / scale. They are a function of the first round's file, so a resumed run has the same."""
    begin = np.asarray(data.shards[0][COLUMN], np.float64)
    spread = float(begin.std())
    found = {
        "value": torch.from_numpy(np.array(data.column(COLUMN))),
        "value_mean": torch.tensor(float(begin.mean())),
        "value_scale": torch.tensor(spread if spread > FLAT else 1.0),
    }
    return found, done
