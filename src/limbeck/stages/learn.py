"""From a loaded teacher to the weights of the chosen students: verify, collect <> imitate, race, choose, polish."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from limbeck import (
    blueprints,
    collection,
    imitation,
    losses,
    objective,
    rollout,
    runs,
    seeding,
    spaces,
    storage,
)
from limbeck.collection import Plan
from limbeck.contracts import Blueprint, Evaluation, Mode, Policy, Task, Teacher, View
from limbeck.dataset import Dataset, open_dataset
from limbeck.objective import Term
from limbeck.polish import evolution
from limbeck.reporting.reading import build
from limbeck.runs import Run
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import TIMED_ROUNDS, CollectSettings, ImitateSettings, Recipe
from limbeck.students import family as families
from limbeck.students.family import Family
from limbeck.students.grammar import MemberSpec, parse
from limbeck.students.stack import Port
from limbeck.teachers import verification

ROUND_STAGES = ("collect", "imitate", "race")


@dataclass(frozen=True)
class Scene:
    """What all stages of a run share."""

    run: Run
    task: Task
    teacher: Teacher
    mode: Mode  # the teacher's better mode
    teacher_mean: float
    random_mean: float
    teacher_steps: float  # mean episode length
    evaluations: Mapping[str, Evaluation]

    @property
    def seed(self) -> int:
        return self.run.recipe.seed

    def retention(self, mean_return: float) -> float:
        """(mean - random) / (teacher - random), the estimate used for choosing, never for claims."""
        return (mean_return - self.random_mean) / max(self.teacher_mean - self.random_mean, 1e-9)


def verify(run: Run, task: Task, teacher: Teacher) -> Scene:
    """Play the teacher in both modes and at random; stop with a diagnosis if it is not what it should be."""

    def compute() -> dict[str, Any]:
        run.tell("verify", f"playing the teacher on {task.name}")
        stated = verification.stated_return(teacher.info)
        found = verification.verify(teacher, task, run.recipe.verify, run.recipe.seed, stated)
        return {"evaluations": found.evaluations, "mode": found.mode, "notes": found.notes}

    record = run.record("verify", compute)
    evaluations = {key: build(Evaluation, value, key) for key, value in record["evaluations"].items()}
    for key, e in evaluations.items():
        who = "random play" if key == "random" else f"teacher, {key}"
        run.tell("verify", f"{who}: return {e.mean:.1f} [{e.low:.1f}, {e.high:.1f}] over {e.episodes} episodes")
    for note in record["notes"]:
        run.tell("verify", note)
    best = evaluations[record["mode"]]
    return Scene(
        run,
        task,
        teacher,
        record["mode"],
        best.mean,
        evaluations["random"].mean,
        best.env_steps / best.episodes,
        evaluations,
    )


# ---------------------------------------------------------------- the family before its first round


def new_family(here: Scene) -> Family:
    """Fresh members, with the view and head that the recipe and the teacher imply."""
    recipe, teacher = here.run.recipe, here.teacher.policy
    name = losses.choose(recipe.imitate.loss, teacher.head)
    view = View(recipe.keys, recipe.indices, recipe.history)
    inputs = spaces.flat_size(here.task.spec.observation_space, view) * view.history
    head = losses.student_head(name, teacher.head)
    port = Port(here.task.spec, view, head, inputs)
    return families.build(parse(recipe.students), {here.task.name: port}, recipe.seed)


def terms_for(here: Scene) -> tuple[Term, ...]:
    """The objective's terms."""
    imitate = here.run.recipe.imitate
    return objective.mixture(losses.choose(imitate.loss, here.teacher.policy.head), imitate.hard_weight)


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


@dataclass
class Progress:
    """Counters that travel in the checkpoint."""

    round: int = 0  # rounds finished
    rounds: int = 0  # rounds in all; 0 while a time limit has not become a number yet
    temperature: float = 1.0
    collection_steps: int = 0
    teacher_queries: int = 0
    gradient_steps: int = 0  # times members trained
    race_steps: int = 0
    seconds: float = 0.0


def imitate_rounds(here: Scene) -> tuple[Family, Progress]:
    """All rounds, from the newest checkpoint on: collect, label, imitate, now and then race."""
    run, family = here.run, new_family(here)
    terms, done = terms_for(here), Progress(rounds=_planned_rounds(here))
    if (found := runs.load_checkpoint(run.folder, "round", run.tell)) is not None:
        family.from_arrays(found[1])
        done = replace(Progress(**found[2]["progress"]), rounds=done.rounds)
        run.tell("imitate", f"continuing after round {done.round} of {done.rounds or '?'}")
    data = open_dataset(run.folder / "dataset", here.task.name, done.round)
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
    collected = collection.collect(here.task, here.teacher.policy, students, plan, number, here.seed)
    data.add(number, collected.columns, {"driver": plan.driver, "env_steps": collected.env_steps})
    temperature = done.temperature
    if number == 0:
        family.normalisers[here.task.name] = imitation.normaliser_of(data, port)
        temperature = _temperature(here, data)
    table = imitation.table(data, port, here.teacher.policy.head, family.normalisers[here.task.name], temperature)
    trained = len(family.members)
    mean_losses = imitation.imitate(
        family, {here.task.name: table}, terms, _pace(recipe.imitate, number, horizon), number, here.seed
    )
    done = replace(
        done, round=number + 1, temperature=temperature,
        collection_steps=done.collection_steps + collected.env_steps,
        teacher_queries=done.teacher_queries + collected.teacher_queries,
        gradient_steps=done.gradient_steps + recipe.imitate.gradient_steps * trained,
    )  # fmt: skip
    rows = [{"stage": "collect", "round": number, "env_steps": done.collection_steps, "driver": plan.driver}]
    rows += [
        {"stage": "imitate", "round": number, "env_steps": done.collection_steps, "member": k, "loss": v}
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
        settings.gradient_steps, settings.batch, rate, settings.gradient_clip, settings.sequence, settings.burn_in
    )


# ---------------------------------------------------------------- racing and choosing


def race(here: Scene, family: Family, done: Progress, rows: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The better half of every size, by mean return on seeds that all members share. Adds its lines to `rows`."""
    settings = here.run.recipe.race
    first = done.round * settings.episodes
    scores, steps = scored(here, family, "race", first, settings.episodes)
    kept: list[str] = []
    for rowed in family.stacks:
        ranked = sorted((m.name for m in rowed.members), key=lambda name: (-scores[name], name))
        kept += ranked[: max(1, math.ceil(len(ranked) / 2))]
    rows += [
        {"stage": "race", "round": done.round - 1, "env_steps": done.collection_steps, "member": name,
         "return_mean": score, "retention": here.retention(score), "kept": name in kept}
        for name, score in scores.items()
    ]  # fmt: skip
    return kept, steps


def scored(here: Scene, family: Family, stage: str, first: int, episodes: int) -> tuple[dict[str, float], int]:
    """Mean greedy return of every member on the same seeds, and the steps that took."""
    seeds = [seeding.episode_seed(here.seed, stage, first + i) for i in range(episodes)]
    scores, steps = {}, 0
    for member in family.members:
        played = rollout.play(NumpyPolicy(family.blueprint(member.name, here.task.name)), here.task, seeds)
        scores[member.name], steps = float(played.returns.mean()), steps + played.env_steps
    return scores, steps


@dataclass(frozen=True)
class Chosen:
    """The member of one size that goes on to proof."""

    member: MemberSpec
    blueprint: Blueprint
    mean_return: float
    polished: bool = False


def choose(here: Scene, family: Family) -> tuple[list[Chosen], dict[str, Any]]:
    """The best member of each size on selection seeds, largest first."""
    run = here.run

    def compute() -> dict[str, Any]:
        scores, steps = scored(here, family, "select", 0, run.recipe.race.final_episodes)
        best = [max((m.name for m in rows.members), key=lambda name: (scores[name], name)) for rows in family.stacks]
        return {"scores": scores, "winners": best, "race_steps": steps}

    record = run.record("choice", compute)
    members = {member.name: member for member in family.members}
    chosen = [
        Chosen(members[name], family.blueprint(name, here.task.name), record["scores"][name])
        for name in record["winners"]
    ]
    for one in chosen:
        run.tell(
            "choose",
            f"{one.member.name}: return {one.mean_return:.1f}, about {100 * here.retention(one.mean_return):.0f} % of the teacher",
        )
    return sorted(chosen, key=lambda one: (-one.blueprint.parameters, one.member.name)), record


# ---------------------------------------------------------------- polish


@dataclass(frozen=True)
class Cost:
    """Environment steps and seconds of a stage."""

    env_steps: int
    seconds: float


def polish(here: Scene, family: Family, chosen: Sequence[Chosen]) -> tuple[list[Chosen], Cost]:
    """Evolve on return those small members whose estimate falls short of the target; the members, and what it cost."""
    settings, retain = here.run.recipe.polish, here.run.recipe.prove.retain
    goal = retain + (1 - retain) / 2 if retain < 1 else retain
    target = here.random_mean + goal * (here.teacher_mean - here.random_mean)
    finished, steps, seconds = [], 0, 0.0
    for one in chosen:
        short = one.mean_return < target and blueprints.fold(one.blueprint).parameters <= settings.max_parameters
        if not (settings.enabled and short):
            finished.append(one)
            continue
        search, spent = _search(here, family, one, target)
        changed = not np.array_equal(search.best, family.row(one.member.name))
        family.put(one.member.name, search.best)
        finished.append(replace(one, blueprint=family.blueprint(one.member.name, here.task.name), polished=changed))
        steps, seconds = steps + search.env_steps, seconds + spent
    return finished, Cost(steps, seconds)


def _search(here: Scene, family: Family, one: Chosen, target: float) -> tuple[evolution.Search, float]:
    """The evolution of one member, from its newest checkpoint to its end, and the seconds it took in all."""
    run, settings, name = here.run, here.run.recipe.polish, one.member.name
    stack, theta = family.stack_of(name), family.row(name)
    normaliser = family.normalisers.get(here.task.name)

    def build(weights: Any) -> Policy:
        return NumpyPolicy(stack.freeze(weights, here.task.name, normaliser, name))

    field = evolution.Field(
        here.task, build, evolution.scales(stack.shapes, theta), here.seed, [member.name for member in parse(run.recipe.students)].index(name),
        settings.pairs, settings.episodes, settings.sigma, settings.learning_rate, settings.validate_every, settings.validation_episodes,
    )  # fmt: skip
    stage = f"polish-{name}"
    found = runs.load_checkpoint(run.folder, stage, run.tell)
    begin, before = time.perf_counter(), float(found[2]["seconds"]) if found is not None else 0.0
    search = evolution.Search.from_arrays(found[1]) if found is not None else evolution.begin(field, theta)
    spent = before
    runs.drop_metrics(
        run.folder,
        lambda row: row["stage"] == "polish" and row["member"] == name and row["generation"] > search.generation,
    )
    while not evolution.finished(search, settings.generations, target):
        search = evolution.generation(field, search)
        retention = here.retention(search.best_return)
        storage.append_metrics(run.folder, [{"stage": "polish", "generation": search.generation, "member": name,
                                             "return_mean": search.best_return, "retention": retention}])  # fmt: skip
        spent = before + time.perf_counter() - begin
        runs.save_checkpoint(run.folder, stage, search.generation, search.to_arrays(), {"seconds": spent})
        run.tell(
            "polish",
            f"{name}: generation {search.generation}/{settings.generations}  best {search.best_return:.1f}  about {100 * retention:.0f} %",
        )
    return search, spent
