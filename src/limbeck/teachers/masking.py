"""A teacher that was never shown the action mask, under the mask of the task it stands before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, tasks
from limbeck.contracts import Observation, PolicyOutput, Spec, State, Teacher
from limbeck.runtimes.around import Around
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.spaces import MASK
from limbeck.teachers.demonstrations import DemonstratedPolicy

NOTE = "it was trained without the task's action mask, and acts under it"


def under_mask(teacher: Teacher, task: Spec) -> Teacher:
    """The same teacher, its forbidden actions taken away; unchanged where the task has no mask or it knows it already."""
    if not tasks.holds_mask(task) or teacher.policy.head.kind not in ("categorical", "q", "multicategorical"):
        return teacher
    if isinstance(teacher.policy, (DemonstratedPolicy, MaskedPolicy)):
        return teacher  # what was recorded was allowed
    info = replace(teacher.info, notes=(*teacher.info.notes, NOTE))
    if teacher.blueprint is None:
        return replace(teacher, policy=MaskedPolicy(teacher.policy), info=info)
    if teacher.blueprint.view.mask is not None:
        return teacher
    drawn = replace(teacher.blueprint, view=replace(teacher.blueprint.view, mask=MASK))
    return replace(teacher, policy=NumpyPolicy(drawn), info=info, blueprint=drawn)


class MaskedPolicy(Around):
    """Another policy whose forbidden actions can neither be chosen nor drawn."""

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        output = self.inner(obs, state, first)
        allowed = tasks.allowed_actions(obs, self.head)
        params = output.params if allowed is None else distributions.masked(output.params, allowed)
        return PolicyOutput(params, output.state, output.value, features=output.features)
