"""The task and the teacher that a recipe names: opened the same way for a run, a proof and an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import collection, recordings, settings, spaces, tasks, teachers
from limbeck.assets import bundled
from limbeck.contracts import Spec, Task, Teacher, View
from limbeck.errors import InputError
from limbeck.recordings import Recordings
from limbeck.settings import Recipe
from limbeck.teachers.demonstrations import DemonstratedPolicy


def open_both(recipe: Recipe, env: Any = None, teacher: Any = None) -> tuple[Task, Teacher]:
    """The task and its teacher. Without an environment recordings stand in for one, and the teacher says what is right."""
    if recipe.env is not None or env is not None:
        task = open_task(recipe, env)
        opened = open_teacher(recipe, task, teacher)
        if recipe.data is not None:
            recordings.refuse_misfit(recordings.read(Path(recipe.data)), task.spec.observation_space, task.name)
        return task, opened
    if recipe.task.wrappers or recipe.task.kwargs or recipe.task.backend != "gymnasium":
        raise InputError(
            "task.wrappers, task.kwargs or task.backend was given without an environment; recordings are taken as they are. Drop it, or name the environment with --env."
        )
    records = recordings.read(Path(str(recipe.data)))
    spec = records.spec or _spec_of(recipe, records, teacher)
    recordings.refuse_misfit(records, spec.observation_space, "what the teacher sees")
    replayed = tasks.from_recordings(records, spec)
    opened = open_teacher(recipe, replayed, teacher)
    return replace(replayed, right=collection.answers_of(opened.policy, replayed.records, replayed)), opened


def _spec_of(recipe: Recipe, records: Recordings, teacher: Any) -> Spec:
    """The teacher's own spaces, where it states them; else those that the arrays imply."""
    try:
        return replace(open_teacher(recipe, None, teacher).policy.spec, name=records.name)
    except InputError:
        return recordings.spec_of(records)


def records_of(recipe: Recipe, task: Task, teacher: Teacher) -> Recordings | None:
    """The recordings that are imitated on, None where the task is played."""
    if isinstance(task, tasks.RecordedTask):
        return task.records
    if recipe.data is not None:
        return recordings.read(Path(recipe.data))
    return teacher.policy.records if isinstance(teacher.policy, DemonstratedPolicy) else None


def identity_of_data(recipe: Recipe, task: Task, teacher: Teacher) -> str | None:
    """The SHA-256 of the recordings that are imitated on, None where the task is played."""
    records = records_of(recipe, task, teacher)
    return None if records is None else records.sha256


def open_task(recipe: Recipe, given: Any = None) -> Task:
    """The recipe's environment, or the recordings that stand in for one; `given` is an object in Python."""
    tasks.watchdog.limit_seconds = recipe.task.step_timeout
    source = given if given is not None else settings.named("environment", recipe.env or "")
    return tasks.resolve(source, wrappers=recipe.task.wrappers, backend=recipe.task.backend, **recipe.task.kwargs)


def open_teacher(recipe: Recipe, task: Task | None, given: Any = None) -> Teacher:
    """The recipe's teacher on the task's spaces (None: its own); `given` is an object in Python."""
    source = given if given is not None else bundled(settings.named("teacher", recipe.teacher))
    view = _teacher_view(recipe)
    if view is not None and task is not None:
        spaces.check_view(task.spec.observation_space, view)
    return teachers.load(
        source,
        task.spec if task is not None else None,
        normaliser=recipe.normaliser,
        kind=recipe.kind,
        architecture=recipe.architecture,
        trust=recipe.trust,
        view=view,
    )


def _teacher_view(recipe: Recipe) -> View | None:
    if recipe.teacher_keys is None and recipe.teacher_indices is None:
        return None
    return View(recipe.teacher_keys, recipe.teacher_indices)
