"""What the students of a run see: the recipe's view, completed by what the task and the teacher say."""

from __future__ import annotations

import gymnasium as gym

from limbeck import losses, spaces
from limbeck.contracts import Task, Teacher, View
from limbeck.settings import Recipe
from limbeck.spaces import MASK
from limbeck.students.stack import Port


def port_of(recipe: Recipe, task: Task, teacher: Teacher) -> Port:
    """What the task feeds the recipe's students and expects of them."""
    view, head = student_view(recipe, task, teacher), teacher.policy.head
    inputs = spaces.flat_size(task.spec.observation_space, view) * view.history
    said = losses.student_head(losses.choose(recipe.imitate.loss, head), head)
    return Port(task.spec, view, said, inputs, task.spec.agents)


def student_view(recipe: Recipe, task: Task, teacher: Teacher) -> View:
    """The entries the recipe names, or else those the teacher sees; an action mask wherever the task offers one."""
    space, head = task.spec.observation_space, teacher.policy.head
    keys = recipe.keys
    if keys is None and recipe.indices is None and teacher.blueprint is not None:
        keys = teacher.blueprint.view.keys
    masked = isinstance(space, gym.spaces.Dict) and MASK in space.spaces and head.discrete
    padding = (
        teacher.blueprint.view.padding if teacher.blueprint is not None else "first"
    )  # frames stacked as the teacher's
    return View(keys, recipe.indices, recipe.history, recipe.noise, padding, MASK if masked else None)
