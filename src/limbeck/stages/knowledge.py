"""What losses need beyond the teacher's rows, gathered before the gradient steps of a round.

Each kind of knowledge is a module of this folder, a `Provider`: it says what a run lacks for it before anything is
played, and makes its labels, one per row of the data set or one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from limbeck import objective
from limbeck.contracts import Policy, Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import InputError
from limbeck.losses import CONSTANTS, LOSSES
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages import critics, features, rollouts, targets, values
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family


class Provider(Protocol):
    """One kind of knowledge; `terms` are those that need it."""

    def missing(self, recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
        """What this run lacks, as the end of "loss ... needs ", without a full stop; None if it lacks nothing."""
        ...

    def labels(
        self, here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
    ) -> tuple[dict[str, torch.Tensor], Progress]:
        """Labels by name, and the progress with what they cost. A function of the data set and the progress alone."""
        ...


ALWAYS = frozenset(  # checked by the head
    {"logits", "q", "gaussian", "squashed", "action", "temperature", "soft_q", "hard", "many_actions"}
)
PROVIDERS: dict[str, Provider] = {
    "features": features, "value": values, "next": targets, "reward": targets, "regret": critics, "critic": critics, "own_rollout": rollouts,
}  # fmt: skip


def refuse(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> None:
    """Raise InputError for a term whose needs this run cannot meet, naming what would be needed."""
    for term in terms:
        if task.spec.agents > 1 and LOSSES[term.name].reads == "hidden":
            raise InputError(
                f"loss {term.name!r} reads a hidden layer, of which a team of {task.spec.agents} has one for each agent. "
                "Allowed for teams: losses on answers."
            )
        for need in sorted(LOSSES[term.name].needs - ALWAYS):
            if need not in PROVIDERS:
                raise InputError(f"loss {term.name!r} needs {need}, which nothing provides. Choose another loss.")
            lacks = PROVIDERS[need].missing(recipe, task, teacher, [term])
            if lacks is not None:
                raise InputError(f"loss {term.name!r} needs {lacks}.")


def refuse_layers(teacher: Teacher, terms: Sequence[Term], hidden: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for terms whose layers a student of the `hidden` layers does not have, or that do not compare."""
    objective.owned(terms, hidden, features.shapes_of(teacher, terms))


def asked(here: Scene, terms: Sequence[Term]) -> Policy:
    """The teacher as it labels a round: with the layers that losses read."""
    return features.asked(here.teacher, terms)


def feature_shapes(here: Scene, terms: Sequence[Term]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the teacher's layers that the terms name."""
    return features.shapes_of(here.teacher, terms)


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Labels for `imitation.table` and the progress with what they cost."""
    found = constants(here.run.recipe)
    for provider in _needed(terms):
        mine = [term for term in terms if any(PROVIDERS.get(n) is provider for n in LOSSES[term.name].needs)]
        made, done = provider.labels(here, family, data, mine, done)
        found |= made
    return found, done


def constants(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The losses' own constants [], as the recipe sets them."""
    return {name: torch.tensor(getattr(recipe.imitate, name)) for name in CONSTANTS}


def of_answers(term: Term) -> bool:
    """Whether a loss can be told from the student's and the teacher's answers alone."""
    entry = LOSSES[term.name]
    return entry.reads == "params" and entry.needs <= ALWAYS


def _needed(terms: Sequence[Term]) -> list[Provider]:
    """The providers of all that the terms need, each once, in the table's order."""
    needs = {need for term in terms for need in LOSSES[term.name].needs}
    found: list[Provider] = []
    for need, provider in PROVIDERS.items():
        if need in needs and provider not in found:
            found.append(provider)
    return found
