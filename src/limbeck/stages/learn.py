"""From a verified teacher to a trained family: collect <> imitate, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from limbeck import (
    collection,
    imitation,
    losses,
    objective,
    runs,
)
from limbeck.collection import Collected, Plan
from limbeck.contracts import Head, Policy
from limbeck.dataset import Dataset, open_dataset
from limbeck.imitation import Table
from limbeck.objective import Term
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import TIMED_ROUNDS, ImitateSettings, Recipe
from limbeck.stages import driving, growing, inheriting, knowledge, labelled, rollouts, stopping, tuning, values
from limbeck.stages.choosing import race
from limbeck.stages.scene import Progress, Scene
from limbeck.stages.views import port_of
from limbeck.students import family as families
from limbeck.students import together
from limbeck.students.family import Family
from limbeck.students.grammar import parse
from limbeck.students.stack import Stack
from limbeck.tasks import RecordedTask

ROUND_STAGES = ("collect", "imitate", "race", "driving", "stopping", "population")


# ---------------------------------------------------------------- the family before its first round


def new_family(here: Scene) -> Family:
    """Fresh members, with the view and head that the recipe and the teacher imply."""
    recipe = here.run.recipe
    port = port_of(recipe, here.task, here.teacher)
    trained = inheriting.trained(recipe.imitate)
    family = families.build(parse(recipe.students), {here.task.name: port}, recipe.seed, owned_by(here), trained)
    tuning.begin(recipe, family, terms_for(here), here.teacher.policy.head)
    return family


def owned_by(here: Scene) -> Callable[[Stack], dict[str, tuple[int, ...]]]:
    """Stacks of this run -> shapes of the losses' own parameters."""
    terms = terms_for(here)

    def owned(stack: Stack) -> dict[str, tuple[int, ...]]:
        return objective.owned(terms, stack.hidden_shapes(here.task.name), knowledge.feature_shapes(here, terms))

    return owned


def terms_for(here: Scene) -> tuple[Term, ...]:
    """The objective's terms."""
    return terms_of(here.run.recipe, here.teacher.policy.head)


def terms_of(recipe: Recipe, head: Head) -> tuple[Term, ...]:
    """The terms of a recipe's objective for a teacher's head."""
    imitate = recipe.imitate
    weight, scale = losses.weights.chosen(imitate.hard_weight, imitate.task_weight, imitate.kd_weight)
    return objective.mixture(objective.parse(imitate.loss, head), weight, scale)


# ---------------------------------------------------------------- collect <> imitate


def imitate_rounds(here: Scene) -> tuple[Family, Progress]:
    """All rounds, from the newest checkpoint on: collect, label, imitate, now and then race."""
    run, family = here.run, new_family(here)
    terms, done = terms_for(here), Progress(rounds=_planned_rounds(here))
    if (found := runs.load_checkpoint(run.folder, "round", run.tell)) is not None:
        family.from_arrays(found[1])
        done = replace(Progress(**found[2]["progress"]), rounds=done.rounds)
        run.tell("imitate", f"continuing after round {done.round} of {done.rounds or '?'}")
    else:
        growing.announce(here, family)
    shards = sum(driving.plays(here, number) for number in range(done.round))
    data = open_dataset(run.folder / "dataset", here.task.name, shards)
    run.drop_metrics(lambda row: row["stage"] in ROUND_STAGES and row["round"] >= done.round)
    while not done.stopped and (not done.rounds or done.round < done.rounds):
        done = _one_round(here, family, data, terms, done)
    stopping.tell_capacity(here, done)
    judged = _judged(here, family)
    judged.settle()  # from here on every member is polished and shipped on its own
    return judged, done


def _judged(here: Scene, family: Family) -> Family:
    """The family with the weights that are raced, chosen and shipped."""
    return stopping.evaluated(family, keep_best=here.run.recipe.imitate.keep_best)


def _planned_rounds(here: Scene) -> int:
    recipe = here.run.recipe
    most = driving.affordable_rounds(recipe)
    if recipe.seconds is not None and (most is None or most > TIMED_ROUNDS):
        return recipe.seconds_rounds or 0
    return recipe.imitate.rounds if most is None else most


def _one_round(here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress) -> Progress:
    begin, number, recipe = time.perf_counter(), done.round, here.run.recipe
    port = family.ports[here.task.name]
    students = [NumpyPolicy(family.blueprint(member.name, here.task.name)) for member in family.members]
    timed = recipe.seconds is not None and number < TIMED_ROUNDS  # their pace must not depend on the time they take
    horizon = recipe.imitate.rounds if timed else done.rounds
    plan = driving.plan(here, done, number, horizon)
    if rollouts.wanted(terms):
        plan = replace(plan, members=rollouts.places(recipe, family))
    asked = knowledge.asked(here, terms)
    if (collected := _collected(here, asked, students, plan, number)) is not None:
        data.add(number, collected.columns, {"driver": plan.driver, "env_steps": collected.env_steps})
        done = replace(
            done, collection_steps=done.collection_steps + collected.env_steps,
            teacher_queries=done.teacher_queries + collected.teacher_queries,
        )  # fmt: skip
    temperature = done.temperature
    if number == 0:
        family.normalisers[here.task.name] = imitation.normaliser_of(data, port)
        temperature = _temperature(here, data)
    table, done = table_of(here, family, data, terms, done, temperature)
    done, measured = stopping.before(here, family, data, table, terms, done)
    if number == 0:
        inheriting.begin(here, family, table)
    updates = together.updates(family.stacks, here.seed, number, recipe.imitate.gradient_steps)
    mean_losses = imitation.imitate(
        family, {here.task.name: table}, terms, _pace(recipe.imitate, number, horizon), number, here.seed
    )
    mean_losses |= growing.round_of(here, family, data, table, number)
    done = replace(
        done, round=number + 1, temperature=temperature,
        gradient_steps=done.gradient_steps + updates,
    )  # fmt: skip
    done, more = stopping.after(here, family, data, table, terms, done)
    held = labelled.losses(here, family, terms, temperature)
    rows = _lines(done, plan, mean_losses, held)
    rows[1:1] = [*measured, *more]
    if done.round in recipe.race.rounds and done.round < horizon and not done.stopped:
        raced, steps = race(here, _judged(here, family), done, rows)
        family.keep(raced)
        done = replace(done, race_steps=done.race_steps + steps)
    if tuning.due(recipe, done, horizon) and not done.stopped:
        done = tuning.exploit(here, family, _judged(here, family), done, rows)
    done = replace(done, seconds=done.seconds + time.perf_counter() - begin)
    if not done.rounds and done.round >= TIMED_ROUNDS:
        rounds = _rounds_in_time(done, recipe.seconds or 0.0)
        done = replace(done, rounds=min(rounds, driving.affordable_rounds(recipe) or rounds))
        runs.fix_rounds(here.run, done.rounds)
    here.run.add_metrics(rows)
    runs.save_checkpoint(here.run.folder, "round", number, family.to_arrays(), {"progress": done})
    here.run.tell("imitate", f"round {done.round}/{done.rounds or '?'}  {done.collection_steps:,} steps  {len(family.members)} members  "
                             f"loss {min(mean_losses.values()):.4f} to {max(mean_losses.values()):.4f}")  # fmt: skip
    return done


def table_of(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress, temperature: float
) -> tuple[Table, Progress]:
    """All rows so far with what the losses need beyond the teacher's, and the progress with what that cost."""
    known, done = knowledge.labels(here, family, data, terms, done)
    port, normaliser = family.ports[here.task.name], family.normalisers[here.task.name]
    table = imitation.table(data, port, here.teacher.policy.head, normaliser, temperature, known)
    done = replace(done, gap=float(known["gap"])) if "gap" in known else done
    return replace(table, held=stopping.held_out(data, here.run.recipe.imitate.validation_share)), done


def _lines(
    done: Progress, plan: Plan, mean_losses: Mapping[str, float], held: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """The round's lines of metrics.jsonl."""
    common = {"round": done.round - 1, "env_steps": done.collection_steps}
    rows: list[dict[str, Any]] = [{"stage": "collect", **common, "driver": plan.driver}]
    rows += [
        {"stage": "imitate", **common, "member": name, "loss": loss, **held.get(name, {})}
        for name, loss in mean_losses.items()
    ]
    return rows


def _collected(here: Scene, teacher: Policy, students: Sequence[Policy], plan: Plan, number: int) -> Collected | None:
    """The round's new rows: played, or in the first round all the recorded ones there are to learn from."""
    if not driving.plays(here, number):
        return None
    if here.records is None:
        played = collection.collect(here.task, teacher, students, plan, number, here.seed)
        if plan.members:
            gamma = values.discount(here.run.recipe, here.teacher)
            columns = rollouts.finished(played.columns, teacher.head, plan.temperature, gamma)
            return replace(played, columns=columns)
        return played
    rows = here.task.train_rows if isinstance(here.task, RecordedTask) else np.arange(here.records.rows)
    return collection.recorded(here.task, here.records, rows, teacher)


def _rounds_in_time(done: Progress, seconds: float) -> int:
    """A time limit becomes a number of rounds once two have been timed; it is recorded, so a resumed run ends the same."""
    return max(done.round, math.floor(seconds * done.round / max(done.seconds, 1e-9)))


def _temperature(here: Scene, data: Dataset) -> float:
    settings: ImitateSettings = here.run.recipe.imitate
    if settings.temperature is not None:
        return settings.temperature
    if here.teacher.policy.head.kind != "q":
        return 1.0
    return losses.q.entropy_temperature(
        torch.from_numpy(np.array(data.column("teacher/params"))), settings.entropy_target
    )


def _pace(settings: ImitateSettings, number: int, rounds: int) -> imitation.Pace:
    rate = imitation.cosine(settings.learning_rate, settings.final_learning_rate, number / max(rounds - 1, 1))
    return imitation.Pace(
        settings.gradient_steps, settings.batch, rate, settings.gradient_clip, settings.sequence, settings.burn_in,
        share=number / max(rounds - 1, 1), priority=settings.priority, regularising=stopping.regularising(settings),
        assistant=settings.assistant,
    )  # fmt: skip
