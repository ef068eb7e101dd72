"""What a labelled set adds to a run: losses per round on rows kept apart, accuracy and macro-F1 at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck.contracts import Policy, Rate, Task
from limbeck.objective import Term
from limbeck.proof import labels
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import knowledge
from limbeck.stages.scene import Scene
from limbeck.students.family import Family
from limbeck.tasks import DatasetTask


def losses(here: Scene, family: Family, terms: Sequence[Term], temperature: float) -> dict[str, dict[str, float]]:
    """Member -> kd_loss and hard_loss on the training rows, validation_loss and its parts on the validation rows.

    Of the losses those that look at answers alone. Nothing for tasks without labels.
    """
    terms = [term for term in terms if knowledge.of_answers(term)]
    if not isinstance(here.task, DatasetTask) or not terms:
        return {}
    scalars = {"temperature": torch.tensor(temperature), **knowledge.constants(here.run.recipe)}
    parts = {part: labels.held_out(here.teacher.policy, here.task, part, scalars) for part in ("train", "validation")}
    found: dict[str, dict[str, float]] = {}
    for member in family.members:
        student = NumpyPolicy(family.blueprint(member.name, here.task.name))
        trained, held = (labels.losses_on(student, parts[part], terms) for part in ("train", "validation"))
        trained.pop("loss")  # the round's own mean is told already
        found[member.name] = trained | {f"validation_{key}": value for key, value in held.items()}
    return found


def scores(task: Task, policies: Mapping[str, Policy], run_seed: int) -> dict[str, dict[str, Rate]]:
    """Who -> accuracy, macro-F1 and the share of rows with every label right, on the test rows."""
    if not isinstance(task, DatasetTask):
        return {}
    measured = {name: labels.measure(policy, task, "test", run_seed) for name, policy in policies.items()}
    return {name: _rates(one) for name, one in measured.items()}


def _rates(found: Any) -> dict[str, Rate]:
    return dict(vars(found))
