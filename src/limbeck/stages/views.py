"""What the students of a run see: the recipe's view, completed by what the task and the teacher say."""

from __future__ import annotations

from limbeck import losses, objective, spaces
from limbeck.contracts import Blueprint, Policy, Task, Teacher, View
from limbeck.settings import Recipe
from limbeck.spaces import MASK
from limbeck.students.stack import Port
from limbeck.tasks import holds_mask


def port_of(recipe: Recipe, task: Task, teacher: Teacher) -> Port:
    """What the task feeds the recipe's students and expects of them."""
    view, head = student_view(recipe, task, teacher), teacher.policy.head
    inputs = spaces.flat_size(task.spec.observation_space, view) * view.history
    said = losses.student_head([term.name for term in objective.parse(recipe.imitate.loss, head)], head)
    return Port(task.spec, view, said, inputs, task.spec.agents)


def student_view(recipe: Recipe, task: Task, teacher: Teacher) -> View:
    """The entries the recipe names, or else those the teacher sees; an action mask wherever the task offers one."""
    seen = teacher_view(recipe, teacher)
    keys = seen.keys if recipe.keys is None and recipe.indices is None else recipe.keys
    masked = teacher.policy.head.discrete and holds_mask(task.spec)
    return View(keys, recipe.indices, recipe.history, recipe.noise, seen.padding, MASK if masked else None)


def teacher_view(recipe: Recipe, teacher: Teacher) -> View:
    """What of the observation the teacher sees, as far as it is known: a blueprint says it, a recipe may say it."""
    if teacher.blueprint is not None:
        return teacher.blueprint.view
    views = {_keys_of(policy) for policy in getattr(teacher.policy, "members", (teacher.policy,))}
    return View(recipe.teacher_keys or (views.pop() if len(views) == 1 else None), recipe.teacher_indices)


def _keys_of(policy: Policy) -> tuple[str, ...] | None:
    blueprint = getattr(policy, "blueprint", None)
    return blueprint.view.keys if isinstance(blueprint, Blueprint) else None
