"""What can be refused is refused here, before a folder is touched or a step is played."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck import exporters, losses, objective, spaces
from limbeck.contracts import Task, Teacher
from limbeck.errors import InputError, printable
from limbeck.exporters import sb3
from limbeck.objective import Term
from limbeck.reporting import trackers
from limbeck.runtimes import firmware
from limbeck.settings import ImitateSettings, Recipe
from limbeck.stages import compressing, driving, inheriting, knowledge, stopping, stressing, tuning, values
from limbeck.stages.views import port_of, student_view
from limbeck.students.grammar import Architecture, parse
from limbeck.students.port import Port
from limbeck.students.stack import Stack
from limbeck.students.trees import grown
from limbeck.tasks import RecordedTask
from limbeck.teachers import verification
from limbeck.teachers.demonstrations import DemonstratedPolicy

STEPS_ALONE = (  # fields of `imitate` that trees and rules, which take no gradient steps, do not obey
    "stop", "keep_best", "priority", "shift", "weight_decay", "dropout", "adversarial", "average",
    "inherit", "freeze", "adapt", "assistant", "population",
)  # fmt: skip


def refuse(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    """Raise InputError for students, views, losses and targets that this task, teacher or machine cannot serve."""
    members = parse(recipe.students)
    _refuse_without_trained(recipe)
    _refuse_bare_recordings(task, teacher)
    trackers.require(recipe.report.track)
    stressing.refuse(recipe, task, teacher.policy)
    spaces.check_view(task.spec.observation_space, student_view(recipe, task, teacher))
    _refuse_loss(recipe, task, teacher)
    values.refuse_horizon(recipe, teacher)
    port = port_of(recipe, task, teacher)
    for architecture in dict.fromkeys(member.architecture for member in members):
        if architecture.grown:
            grown.check(architecture, port)
            continue
        stack = Stack(architecture, {task.name: port})  # refuses students that cannot see or serve this task
        terms = objective.parse(recipe.imitate.loss, teacher.policy.head)
        knowledge.refuse_layers(teacher, terms, stack.hidden_shapes(task.name))
    inheriting.refuse(recipe, task, teacher)
    compressing.refuse(recipe, task, teacher)
    tuning.refuse(recipe, objective.parse(recipe.imitate.loss, teacher.policy.head), teacher.policy.head)
    if "sb3" in recipe.export.targets:
        _refuse_sb3(recipe, [member.architecture for member in members], port)
    for device in recipe.export.devices:
        firmware.board_of(device)
    exporters.require(recipe.export.targets)


def _refuse_sb3(recipe: Recipe, architectures: Sequence[Architecture], port: Port) -> None:
    """Students and views that a policy of Stable-Baselines3 cannot be."""
    sb3.check(port.spec, port.view)
    if any(step.startswith("quantise") for step in recipe.compress):
        raise InputError(
            f"target sb3 has no policy like a quantised student. {sb3.ALLOWED} Drop the step from compress."
        )
    for one in architectures:
        if one.kind not in ("linear", "mlp", "nested") or one.precision:
            raise InputError(f"target sb3 has no policy like the student {one.spec}. {sb3.ALLOWED}")


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
    _refuse_schedule(recipe, terms)
    _refuse_for_grown(recipe, teacher, terms, weight)
    driving.refuse(recipe, task, teacher, terms)
    stopping.refuse(recipe, task, teacher, terms)


def _refuse_schedule(recipe: Recipe, terms: Sequence[Term]) -> None:
    rounds = driving.fewest_rounds(recipe)
    if rounds < 2 and any(term.final is not None for term in terms):
        raise InputError(
            f"imitate.loss = {printable(recipe.imitate.loss)!r} changes from the first round to the last, and there is {rounds} round. "
            "Give more rounds, or constant weights."
        )


def _grown_alone(recipe: Recipe) -> bool:
    return all(member.architecture.grown for member in parse(recipe.students))


def _refuse_without_trained(recipe: Recipe) -> None:
    """Where nobody takes gradient steps, settings about those would be accepted and change nothing."""
    if not _grown_alone(recipe):
        return
    default = ImitateSettings()
    given = {f"imitate.{name}": getattr(recipe.imitate, name) for name in STEPS_ALONE
             if getattr(recipe.imitate, name) != getattr(default, name)}  # fmt: skip
    given |= {"noise": recipe.noise} if recipe.noise else {}
    for name, value in given.items():
        said = ",".join(value) if isinstance(value, tuple) else value
        raise InputError(
            f"{name} = {printable(said)} is about gradient steps, and {', '.join(recipe.students)} take none. "
            "Drop it, or add a trained student such as mlp:16."
        )


def _refuse_for_grown(recipe: Recipe, teacher: Teacher, terms: Sequence[Term], weight: float) -> None:
    """Trees and rules alone follow no loss; of those that know action values they take how much each row matters."""
    if not _grown_alone(recipe):
        return
    auto = objective.parse("auto", teacher.policy.head)
    weighs = [term.name for term in terms if "regret" in losses.LOSSES[term.name].needs]
    idle = any(term.name not in (*weighs, auto[0].name) for term in terms)  # hints and values are of networks alone
    if weight or idle or (terms != auto and not weighs):
        asked = f"labels of weight {weight:g}" if weight else f"imitate.loss = {printable(recipe.imitate.loss)!r}"
        raise InputError(
            f"trees and rules imitate the teacher's greedy action, and {asked} has no effect on {', '.join(recipe.students)}. "
            "Drop it, take kl_gap or regret (rows are drawn by the action values they bring), or add a trained student such as mlp:16."
        )
