"""What losses need beyond the teacher's rows, gathered before the gradient steps of a round.

Each kind of knowledge says what it can provide for a run (`refuse` names what is missing before anything is played)
and makes its labels, one per row of the data set, or one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from limbeck.contracts import Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family

ALWAYS = frozenset({"logits", "q", "gaussian", "squashed", "action", "temperature", "hard"})  # checked by the head


def refuse(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> None:
    """Raise InputError for a term whose needs this run cannot meet, naming what would be needed."""
    for term in terms:
        for need in sorted(LOSSES[term.name].needs - ALWAYS):
            raise InputError(f"loss {term.name!r} needs {need}.")


def feature_shapes(here: Scene, terms: Sequence[Term]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the teacher's layers that the terms name."""
    return {}


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Labels for `imitation.table` and the progress with what they cost."""
    return {}, done
