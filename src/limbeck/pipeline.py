"""THE MAP: load > verify > collect <> imitate > polish > export > prove > report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import identity, machine, runs, settings, storage, tasks
from limbeck.contracts import RunResult, Task, Teacher
from limbeck.errors import InputError
from limbeck.reporting.trackers.live import following
from limbeck.runs import Tell
from limbeck.settings import Recipe
from limbeck.stages import choosing, compressing, learn, proving, refusals, scene, ship, stressing
from limbeck.stages.opening import identity_of_data, open_both


@tasks.own_limit()
def distill(
    values: Mapping[str, Any],
    options: Sequence[str],
    folder: Path | None,
    *,
    teacher_object: Any,
    env_object: Any,
    tell: Tell,
) -> RunResult:
    """From a teacher to a proved, exported family in one folder. Stopped anywhere, the same call continues."""
    recipe, task, teacher = _load(values, options, teacher_object, env_object, tell)
    folder = folder or default_folder(recipe, task)
    runs.refuse_foreign(folder)
    tracked = following(folder, recipe.report.track, tell)
    with storage.locked(folder), machine.steady(recipe.threads), tracked as follower:
        if (folder / runs.RESULT).exists():
            tell("run", f"{folder} is finished: what it found is told again")
        run = replace(runs.open_run(folder, recipe, tell, identity.of_task(task)), follower=follower)
        here = scene.verify(run, task, teacher)  # is the teacher what it should be?
        family, imitated = learn.imitate_rounds(here)  # collect <> imitate, racing between rounds
        chosen, choice = choosing.choose(here, family)  # one member of each size
        chosen, polished = choosing.polish(here, family, chosen)  # on return, where imitation falls short
        chosen, imitated = compressing.compress(here, family, chosen, imitated)  # pruned, factorised, quantised
        chosen = ship.save_students(here, chosen)
        artifacts = ship.export(here, chosen)  # written, compiled, checked against golden sequences
        proofs = proving.prove(here, chosen, artifacts)  # the artefact itself plays
        stressed = stressing.stress(here, chosen, artifacts, proofs)  # under noise, delay, other physics, where asked
        result = ship.conclude(
            here, chosen, artifacts, proofs, imitated, choice, polished, stressed
        )  # video, bill, result.json
        ship.present(here)  # page, manifest
    return result


def _load(
    values: Mapping[str, Any], options: Sequence[str], teacher_object: Any, env_object: Any, tell: Tell
) -> tuple[Recipe, Task, Teacher]:
    """Everything that can be refused is refused here, before a folder is touched."""
    recipe = settings.recipe_from(settings.with_options(values, options))
    task, teacher = open_both(recipe, env_object, teacher_object)
    digest = identity.of_teacher(teacher)
    if recipe.teacher_sha256 not in (None, digest):
        raise InputError(
            f"{recipe.teacher} has SHA-256 {digest} (its normaliser counted in), the recipe was made with {recipe.teacher_sha256}. Use that file, or drop teacher_sha256."
        )
    held = identity_of_data(recipe, task, teacher)
    if recipe.data_sha256 not in (None, held):
        raise InputError(
            f"the recordings {recipe.data or recipe.teacher} have SHA-256 {held}, the recipe was made with {recipe.data_sha256}. Use those, or drop data_sha256."
        )
    for note in (*getattr(task, "notes", ()), *teacher.info.notes):
        tell("load", note)
    if teacher.info.unread:
        tell("load", f"left unread because reading would run code: {', '.join(teacher.info.unread)}")
    refusals.refuse(recipe, task, teacher)
    return replace(recipe, teacher_sha256=digest, data_sha256=held), task, teacher


def default_folder(recipe: Recipe, task: Task) -> Path:
    """runs/TASK-TEACHER, with names made safe."""
    stem = Path(recipe.teacher.split(":")[-1]).stem
    return Path("runs") / re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{task.name}-{stem}")
