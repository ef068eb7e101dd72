"""From a verified teacher to a trained family: collect <> imitate, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from limbeck import (
    collection,
    imitation,
    losses,
    objective,
    runs,
    storage,
)
from limbeck.collection import Collected, Plan
from limbeck.contracts import Policy
from limbeck.dataset import Dataset, open_dataset
from limbeck.objective import Term
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import TIMED_ROUNDS, CollectSettings, ImitateSettings, Recipe
from limbeck.stages import knowledge, labelled
from limbeck.stages.choosing import race
from limbeck.stages.scene import Progress, Scene
from limbeck.stages.views import port_of
from limbeck.students import family as families
from limbeck.students.family import Family
from limbeck.students.grammar import parse
from limbeck.students.stack import Stack
from limbeck.tasks import RecordedTask

ROUND_STAGES = ("collect", "imitate", "race")


# ---------------------------------------------------------------- the family before its first round


def new_family(here: Scene) -> Family:
    """Fresh members, with the view and head that the recipe and the teacher imply."""
    recipe = here.run.recipe
    port = port_of(recipe, here.task, here.teacher)
    terms = terms_for(here)

    def owned(stack: Stack) -> dict[str, tuple[int, ...]]:
        return objective.owned(terms, stack.hidden_shapes(here.task.name), knowledge.feature_shapes(here, terms))

    return families.build(parse(recipe.students), {here.task.name: port}, recipe.seed, owned)


def terms_for(here: Scene) -> tuple[Term, ...]:
    """The objective's terms."""
    imitate = here.run.recipe.imitate
    weight, scale = losses.weights.chosen(imitate.hard_weight, imitate.task_weight, imitate.kd_weight)
    return objective.mixture(objective.parse(imitate.loss, here.teacher.policy.head), weight, scale)


def round_plan(here: Scene, number: int, rounds: int) -> Plan:
    """Who drives round `number`. Lanes are so few that each lasts about one of the teacher's episodes."""
    settings = here.run.recipe.collect
    budget, most = here.run.recipe.env_steps, _affordable_rounds(here.run.recipe)
    steps = settings.steps if budget is None or most is None else budget // most
    lanes = max(1, min(settings.slots, round(steps / max(here.teacher_steps, 1.0))))
    driver = "teacher" if number < settings.teacher_rounds else settings.driver
    return Plan(
        steps, lanes, driver,
        beta=max(0.0, 1.0 - number / settings.beta_rounds),
        trust=_trust(settings, number / max(rounds, 1)),
        random_share=settings.random_share,
        teacher_mode=here.mode,
    )  # fmt: skip


def _trust(settings: CollectSettings, share: float) -> float:
    return settings.trust * max(0.0, 1.0 - share / settings.trust_share) if settings.trust_share else 0.0


# ---------------------------------------------------------------- collect <> imitate


def imitate_rounds(here: Scene) -> tuple[Family, Progress]:
    """All rounds, from the newest checkpoint on: collect, label, imitate, now and then race."""
    run, family = here.run, new_family(here)
    terms, done = terms_for(here), Progress(rounds=_planned_rounds(here))
    if (found := runs.load_checkpoint(run.folder, "round", run.tell)) is not None:
        family.from_arrays(found[1])
        done = replace(Progress(**found[2]["progress"]), rounds=done.rounds)
        run.tell("imitate", f"continuing after round {done.round} of {done.rounds or '?'}")
    shards = done.round if here.records is None else min(done.round, 1)  # recordings are one shard
    data = open_dataset(run.folder / "dataset", here.task.name, shards)
    runs.drop_metrics(run.folder, lambda row: row["stage"] in ROUND_STAGES and row["round"] >= done.round)
    while not done.rounds or done.round < done.rounds:
        done = _one_round(here, family, data, terms, done)
    return family, done


def _planned_rounds(here: Scene) -> int:
    recipe = here.run.recipe
    most = _affordable_rounds(recipe)
    if recipe.seconds is not None and (most is None or most > TIMED_ROUNDS):
        return recipe.seconds_rounds or 0
    return recipe.imitate.rounds if most is None else most


def _affordable_rounds(recipe: Recipe) -> int | None:
    """Equal rounds of at most collect.steps that use up the budget of environment steps; None without one."""
    return None if recipe.env_steps is None else math.ceil(recipe.env_steps / recipe.collect.steps)


def _one_round(here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress) -> Progress:
    begin, number, recipe = time.perf_counter(), done.round, here.run.recipe
    port = family.ports[here.task.name]
    students = [NumpyPolicy(family.blueprint(member.name, here.task.name)) for member in family.members]
    timed = recipe.seconds is not None and number < TIMED_ROUNDS  # their pace must not depend on the time they take
    horizon = recipe.imitate.rounds if timed else done.rounds
    plan = replace(round_plan(here, number, horizon), temperature=done.temperature)
    if (collected := _collected(here, students, plan, number)) is not None:
        data.add(number, collected.columns, {"driver": plan.driver, "env_steps": collected.env_steps})
        done = replace(
            done, collection_steps=done.collection_steps + collected.env_steps,
            teacher_queries=done.teacher_queries + collected.teacher_queries,
        )  # fmt: skip
    temperature = done.temperature
    if number == 0:
        family.normalisers[here.task.name] = imitation.normaliser_of(data, port)
        temperature = _temperature(here, data)
    known, done = knowledge.labels(here, family, data, terms, done)  # what the losses need beyond the teacher's rows
    table = imitation.table(
        data, port, here.teacher.policy.head, family.normalisers[here.task.name], temperature, known
    )
    trained = len(family.members)
    mean_losses = imitation.imitate(
        family, {here.task.name: table}, terms, _pace(recipe.imitate, number, horizon), number, here.seed
    )
    done = replace(
        done, round=number + 1, temperature=temperature,
        gradient_steps=done.gradient_steps + recipe.imitate.gradient_steps * trained,
    )  # fmt: skip
    held = labelled.losses(here, family, terms, temperature)
    rows = [{"stage": "collect", "round": number, "env_steps": done.collection_steps, "driver": plan.driver}]
    rows += [
        {
            "stage": "imitate",
            "round": number,
            "env_steps": done.collection_steps,
            "member": k,
            "loss": v,
            **held.get(k, {}),
        }
        for k, v in mean_losses.items()
    ]
    if done.round in recipe.race.rounds and done.round < horizon:
        raced, steps = race(here, family, done, rows)
        family.keep(raced)
        done = replace(done, race_steps=done.race_steps + steps)
    done = replace(done, seconds=done.seconds + time.perf_counter() - begin)
    if not done.rounds and done.round >= TIMED_ROUNDS:
        rounds = _rounds_in_time(done, recipe.seconds or 0.0)
        done = replace(done, rounds=min(rounds, _affordable_rounds(recipe) or rounds))
        runs.fix_rounds(here.run, done.rounds)
    storage.append_metrics(here.run.folder, rows)
    runs.save_checkpoint(here.run.folder, "round", number, family.to_arrays(), {"progress": done})
    here.run.tell("imitate", f"round {done.round}/{done.rounds or '?'}  {done.collection_steps:,} steps  {len(family.members)} members  "
                             f"loss {min(mean_losses.values()):.4f} to {max(mean_losses.values()):.4f}")  # fmt: skip
    return done


def _collected(here: Scene, students: Sequence[Policy], plan: Plan, number: int) -> Collected | None:
    """The round's new rows: played, or in the first round all the recorded ones there are to learn from."""
    if here.records is None:
        return collection.collect(here.task, here.teacher.policy, students, plan, number, here.seed)
    if number > 0:
        return None
    rows = here.task.train_rows if isinstance(here.task, RecordedTask) else np.arange(here.records.rows)
    return collection.recorded(here.task, here.records, rows, here.teacher.policy)


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
        share=number / max(rounds - 1, 1),
    )  # fmt: skip
