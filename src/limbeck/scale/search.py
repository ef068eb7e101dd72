"""`limbeck search`: pass after pass until the budget is spent, by as many processes as like; then the front, proved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import identity, machine, settings, tasks
from limbeck.errors import InputError, StorageError
from limbeck.runs import Tell
from limbeck.scale import claims, fronts, passes, sampling, study
from limbeck.scale.asked import settings_from
from limbeck.scale.fronts import SearchResult
from limbeck.scale.space import Space, space_of
from limbeck.scale.study import Study
from limbeck.settings import Recipe, SearchSettings
from limbeck.stages.opening import identity_of_data, open_both


@tasks.own_limit()
def search(
    values: Mapping[str, Any],
    flags: Mapping[str, Any],
    options: Sequence[str],
    folder: Path,
    words: Sequence[str],
    tell: Tell,
) -> SearchResult:
    """The map. Any number of processes may run it on one folder; stopped anywhere, the same call continues."""
    asked, rest = settings_from(flags, options)
    sampling.refuse_unfit(asked.storage, folder)
    found = _load(values, rest, asked, tell)
    with machine.steady(found.recipe.threads):
        here = study.open_study(folder, found, tell)
        if (folder / study.FRONT).exists():
            _refuse_more(here)
            tell("search", f"{folder} is finished: what it found is told again")
            return fronts.told_again(here)
        while (work := study.next_work(here)) is not None:
            try:
                passes.train(here.here, found, work.plan, folder)
            except BaseException as error:
                if not isinstance(error, Exception):
                    study.interrupted(here, work)
                raise
            finally:
                work.claim.release()
        return _conclude(here, fronts.command_of(words))


def _load(values: Mapping[str, Any], options: Sequence[str], asked: SearchSettings, tell: Tell) -> Space:
    """Everything that can be refused is refused here, before a folder is touched."""
    recipe = settings.recipe_from(settings.with_options(values, options))
    _refuse_budgets_of_runs(recipe)
    task, teacher = open_both(recipe)
    for note in (*getattr(task, "notes", ()), *teacher.info.notes):
        tell("load", note)
    recipe = replace(
        recipe, teacher_sha256=identity.of_teacher(teacher), data_sha256=identity_of_data(recipe, task, teacher)
    )
    found = space_of(recipe, task, teacher, asked)
    study.refuse_before_play(found)
    for line in found.left_out:
        tell("search", f"left out, {line}")
    return found


def _refuse_budgets_of_runs(recipe: Recipe) -> None:
    if recipe.seconds is not None or recipe.env_steps is not None:
        raise InputError(
            "the recipe has a budget of its own (seconds or env_steps), which a search shares out by rungs. "
            "Drop it, and give the search its own with --env-steps, --trials or search.rungs."
        )


def _refuse_more(here: Study) -> None:
    """More trials after a proof would choose a second family for the same error probability."""
    planned = sum(len(p.candidates) for p in passes.plans(here.folder))
    if here.space.settings.trials > planned and here.space.settings.env_steps is None:
        raise StorageError(
            f"{here.folder} is finished: its front was proved after {planned} candidates, and more would be a second choice at the same alpha. Choose another --out."
        )


def _conclude(here: Study, command: str) -> SearchResult:
    """Whoever comes first proves the front; the others wait, go on with it if the prover dies, or tell what it found."""
    told = False
    while (claim := claims.take(here.folder / "final.lock")) is None:
        if not told:
            here.here.run.tell("search", "another process proves the front; waiting for it")
            told = True
        time.sleep(study.POLL_SECONDS)
    try:
        if (here.folder / study.FRONT).exists():
            return fronts.told_again(here)
        if not passes.finished(here.folder):
            raise StorageError(
                f"every pass of {here.folder} failed. See the messages above, mend the cause and choose another --out."
            )
        return fronts.prove(here, command)
    finally:
        claim.release()
