"""What can be refused is refused here, before a folder is touched or a step is played."""

from __future__ import annotations

from limbeck import exporters, losses, objective, spaces
from limbeck.contracts import Task, Teacher
from limbeck.errors import InputError, unknown
from limbeck.settings import Recipe
from limbeck.stages import knowledge
from limbeck.stages.views import port_of, student_view
from limbeck.students.grammar import parse
from limbeck.students.stack import Stack
from limbeck.tasks import RecordedTask
from limbeck.teachers import verification
from limbeck.teachers.demonstrations import DemonstratedPolicy

COMPILERS = {"c"}  # targets that are written all the same where what runs them is missing


def refuse(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    """Raise InputError for students, views, losses and targets that this task, teacher or machine cannot serve."""
    members = parse(recipe.students)
    _refuse_bare_recordings(task, teacher)
    spaces.check_view(task.spec.observation_space, student_view(recipe, task, teacher))
    _refuse_loss(recipe, task, teacher)
    port = port_of(recipe, task, teacher)
    for architecture in dict.fromkeys(member.architecture for member in members):
        Stack(architecture, {task.name: port})  # refuses students that cannot see or serve this task
    for target in recipe.export.targets:
        if target not in exporters.targets():
            raise unknown("target", target, exporters.targets())
        missing = exporters.missing(target)
        if missing and target not in COMPILERS:
            raise InputError(
                f"target {target} cannot be made here: {missing}. Install it, or choose --options export.targets=c."
            )


def _refuse_bare_recordings(task: Task, teacher: Teacher) -> None:
    """Recordings answer where somebody has been, and are worth the rewards they hold."""
    if isinstance(task, RecordedTask):
        return
    if isinstance(teacher.policy, DemonstratedPolicy):
        verification.refuse_unrewarded(teacher.policy.records)
    if any(isinstance(member, DemonstratedPolicy) for member in getattr(teacher.policy, "members", ())):
        raise InputError(
            f"a member of the ensemble is recordings, which cannot play {task.name}. Allowed: policies; recordings alone as the teacher."
        )


def _refuse_loss(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    settings, head = recipe.imitate, teacher.policy.head
    terms = objective.parse(settings.loss, head)
    weight, _ = losses.weights.chosen(settings.hard_weight, settings.task_weight, settings.kd_weight)
    names = [term.name for term in terms]
    if (weight or any("hard" in losses.LOSSES[name].needs for name in names)) and not task.has_answers:
        raise InputError(
            f"loss {settings.loss!r} with weight {weight:g} on labels needs hard labels, which {task.name} does not have. "
            "Allowed here: a loss on the teacher's answers alone."
        )
    heated = any("temperature" in losses.LOSSES[name].needs for name in names)
    if settings.temperature is not None and head.kind != "q" and not heated:
        raise InputError(
            f"imitate.temperature = {settings.temperature:g} is for Q teachers and the loss kd; this one is {head.kind} and is imitated as it is. Drop it."
        )
    knowledge.refuse(recipe, task, teacher, terms)
