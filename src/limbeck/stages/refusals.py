"""What can be refused is refused here, before a folder is touched or a step is played."""

from __future__ import annotations

from limbeck import exporters, losses, spaces
from limbeck.contracts import Task, Teacher, View
from limbeck.errors import InputError, unknown
from limbeck.settings import Recipe
from limbeck.students.grammar import parse

COMPILERS = {"c"}  # targets that are written all the same where what runs them is missing


def refuse(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    """Raise InputError for students, views, losses and targets that this task, teacher or machine cannot serve."""
    parse(recipe.students)
    spaces.check_view(task.spec.observation_space, View(recipe.keys, recipe.indices, recipe.history))
    _refuse_loss(recipe, task, teacher)
    for target in recipe.export.targets:
        if target not in exporters.targets():
            raise unknown("target", target, exporters.targets())
        missing = exporters.missing(target)
        if missing and target not in COMPILERS:
            raise InputError(
                f"target {target} cannot be made here: {missing}. Install it, or choose --options export.targets=c."
            )


def _refuse_loss(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    settings, head = recipe.imitate, teacher.policy.head
    name = losses.choose(settings.loss, head)
    if (settings.hard_weight or "hard" in losses.LOSSES[name].needs) and not task.has_answers:
        raise InputError(
            f"loss {name!r} with imitate.hard_weight = {settings.hard_weight:g} needs hard labels, which {task.name} does not have. "
            "Allowed here: a loss on the teacher's answers, imitate.hard_weight = 0."
        )
    if settings.temperature is not None and head.kind != "q":
        raise InputError(
            f"imitate.temperature = {settings.temperature:g} is for Q teachers; this one is {head.kind} and is imitated as it is. Drop it."
        )
