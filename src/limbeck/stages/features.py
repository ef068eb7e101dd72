"""The teacher's layers, captured while it labels and stored beside its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from limbeck.contracts import Policy, Task, Teacher
from limbeck.dataset import FEATURE, Dataset
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family
from limbeck.teachers import featured


def layers_of(terms: Sequence[Term]) -> tuple[str, ...]:
    """The teacher's layers that the terms name, each once."""
    return tuple(dict.fromkeys(term.source for term in terms if term.source))


def shapes_of(teacher: Teacher, terms: Sequence[Term]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of those layers."""
    wanted = layers_of(terms)
    return {name: shape for name, shape in featured.shapes(teacher).items() if name in wanted} if wanted else {}


def asked(teacher: Teacher, terms: Sequence[Term]) -> Policy:
    """The teacher as it labels: it shows the layers that the terms name."""
    return featured.capturing(teacher, layers_of(terms))


def missing(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
    """Nothing, or InputError with the teacher's layers for one that it does not have."""
    featured.refuse(teacher, layers_of(terms))
    return None


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """ "feature:LAYER" [N, ...] float32, a picture's channels first."""
    found = {
        f"{FEATURE}:{layer}": torch.from_numpy(np.array(data.column(f"{FEATURE}/{layer}")))
        for layer in layers_of(terms)
    }
    return found, done
