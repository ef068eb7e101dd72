"""What a student's own episodes say about its actions: the costs that came after them.

Made when a round was played, for only then the policy that played is at hand, and kept in the round's file:
`member` [N] who drove (its place in the recipe's students, -1 for the teacher), `log_behaviour` [N] of the action that
was drawn, and `to_go` [N] the costs to come. A row speaks for the member that drove it; for the others its to_go is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.batches import OF_MEMBER
from limbeck.contracts import Array, Head, Task, Teacher
from limbeck.dataset import Dataset
from limbeck.losses import LOSSES, costs
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages.opening import records_of
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family
from limbeck.students.grammar import parse

NEED = "own_rollout"


def missing(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
    """What the run lacks for episodes of the students' own, None if it lacks nothing."""
    settings = recipe.collect
    if records_of(recipe, task, teacher) is not None:
        return "episodes that students play themselves, and with recordings nobody plays. Needed: env"
    if settings.driver != "student" or not settings.lmbda:
        said = f"collect.driver is {settings.driver}" if settings.lmbda else "collect.lmbda is 0"
        return f"episodes that students drive alone; {said}. Needed: collect.driver=student with collect.lmbda above 0"
    if settings.student_mode != "sampled":
        return "actions drawn from the student's distribution. Needed: collect.student_mode=sampled"
    return None


def wanted(terms: Sequence[Term]) -> bool:
    """Whether a round's file must hold who drove and what came after."""
    return any(NEED in LOSSES[term.name].needs for term in terms)


def places(recipe: Recipe, family: Family) -> tuple[int, ...]:
    """The place of every surviving member among the recipe's students."""
    names = [member.name for member in parse(recipe.students)]
    return tuple(names.index(member.name) for member in family.members)


def finished(columns: Mapping[str, Array], head: Head, temperature: float, gamma: float) -> dict[str, Array]:
    """A round's columns with `log_behaviour` and `to_go` in the place of what students said ("student/params").

    `head` is the teacher's, whose labels the costs are of."""
    columns = dict(columns)
    said = columns.pop("student/params", None)
    rows = len(columns["first"])
    if said is None:  # the teacher's round
        return columns | {name: np.zeros(rows, np.float32) for name in ("log_behaviour", "to_go")}
    labels = {"params": torch.from_numpy(np.array(columns["teacher/params"])), "temperature": torch.tensor(temperature)}
    cost = costs.cost(torch.from_numpy(said), labels, head).double().numpy()
    log_behaviour = torch.log_softmax(torch.from_numpy(said).double(), -1).numpy()[np.arange(rows), columns["action"]]
    own = columns["member"] >= 0
    future = to_go(cost, np.asarray(columns["first"]), columns["member"], gamma)
    found = {"log_behaviour": np.where(own, log_behaviour, 0.0), "to_go": np.where(own, future, 0.0)}
    return columns | {name: values.astype(np.float32) for name, values in found.items()}


def to_go(
    cost: NDArray[np.float64], first: NDArray[np.bool_], member: NDArray[np.int64], gamma: float
) -> NDArray[np.float64]:
    """sum_{k > t} gamma^{k - t} (c_k - b) to the end of each row's episode [N], b the mean cost of the member's rows.

    The future of the excess cost that `losses.costs` follows: costs are never negative, and without b a student would
    learn to end its episodes. What follows a cut by the round's end or a time limit counts as average, too.

    >>> to_go(np.array([1.0, 3.0, 5.0, 3.0]), np.array([True, False, False, True]), np.zeros(4, int), 0.5).tolist()
    [0.5, 1.0, 0.0, 0.0]
    """
    centred = cost.copy()
    for one in np.unique(member):
        centred[member == one] -= cost[member == one].mean()
    found = np.zeros_like(centred)
    for t in range(len(cost) - 2, -1, -1):
        if not first[t + 1]:
            found[t] = gamma * (centred[t + 1] + found[t + 1])
    return found


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """ "said" [N] int64, "log_behaviour" [N], and for every member its own "to_go" [N], 0 where another drove."""
    member, future = np.asarray(data.column("member")), np.asarray(data.column("to_go"))
    found = {
        "said": torch.from_numpy(np.asarray(data.column("action")).astype(np.int64)),
        "log_behaviour": torch.from_numpy(np.array(data.column("log_behaviour"))),
    }
    for one, place in zip(family.members, places(here.run.recipe, family), strict=True):
        mine = np.where(member == place, future, np.float32(0)).astype(np.float32)
        found[f"to_go{OF_MEMBER}{one.name}"] = torch.from_numpy(mine)
    return found, done
