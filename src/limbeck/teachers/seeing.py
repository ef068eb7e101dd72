"""What of a task's observation a teacher sees: found by comparing the space it was trained on with the task's.

A teacher trained on a plain Box may stand before a task that offers a Dict (the state beside the pixels, an action
mask beside the observation), one trained on stacked frames before a task that gives them singly. Both are the same
question, answered once here for every format.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from limbeck.contracts import Spec, View
from limbeck.errors import InputError, printable
from limbeck.spaces import check_view
from limbeck.teachers import stated

MASK = "action_mask"


def view_on(theirs: Spec, view: View, task: Spec, given: View | None) -> tuple[View, tuple[str, ...]]:
    """The view of a policy made for `theirs` on the task's observation, and notes. Raises InputError where none fits.

    `given` is what the user says it sees; its keys and indices win over what would be found.
    """
    if given is not None:
        view = replace(view, keys=given.keys or view.keys, indices=given.indices or view.indices)
    inner = task.observation_space
    notes: tuple[str, ...] = ()
    if isinstance(inner, spaces.Dict) and not isinstance(theirs.observation_space, spaces.Dict):
        key = _key_for(theirs.observation_space, inner, view, task)
        view, inner = replace(view, keys=(key,)), inner[key]
        notes = (f"the teacher sees {key!r} of the observation",)
    if given is None or given.indices is None:
        notes += stated.compare_spaces(
            Spec(theirs.observation_space, theirs.action_space), replace(task, observation_space=inner)
        )
    check_view(task.observation_space, view)
    return view, notes


def _key_for(theirs: gym.Space[Any], offered: spaces.Dict, view: View, task: Spec) -> str:
    if view.keys is not None and len(view.keys) == 1:
        return view.keys[0]
    fitting = [k for k, v in offered.spaces.items() if k != MASK and stated.shape_of(v) == stated.shape_of(theirs)]
    if len(fitting) != 1:
        problem = "no entry fits" if not fitting else f"{' and '.join(fitting)} fit"
        raise InputError(
            f"the teacher sees {stated.shape_of(theirs)}, {printable(task.name)} offers {stated.shape_of(offered)}: {problem}. "
            "Name the entry with --teacher-keys."
        )
    return fitting[0]
