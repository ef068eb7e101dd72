"""Which members go on: races between rounds, the best of each size, and polish on return where it falls short."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from limbeck import (
    blueprints,
    rollout,
    runs,
    seeding,
)
from limbeck.contracts import Blueprint, Floats, Policy
from limbeck.polish import evolution
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import growing, values
from limbeck.stages.scene import Progress, Scene
from limbeck.students import quantised
from limbeck.students.family import Family
from limbeck.students.grammar import MemberSpec, parse
from limbeck.tasks import RecordedTask

# ---------------------------------------------------------------- racing and choosing


def race(here: Scene, family: Family, done: Progress, rows: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The better half of every size, by mean return on seeds that all members share. Adds its lines to `rows`."""
    settings = here.run.recipe.race
    first = done.round * settings.episodes
    scores, steps = scored(here, family, "race", first, settings.episodes)
    kept: list[str] = []
    for members in family.sizes:
        ranked = sorted((m.name for m in members), key=lambda name: (-scores[name], name))
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
    lineage: tuple[str, ...] = ()  # of compressed members: the member it came from, then each step


def by_size(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Largest first, by the bytes of their numbers: the order of the proofs."""
    return sorted(chosen, key=lambda one: (-quantised.weight_bytes(one.blueprint), one.member.name))


def choose(here: Scene, family: Family) -> tuple[list[Chosen], dict[str, Any]]:
    """The best member of each size on selection seeds, largest first."""
    run = here.run
    growing.settle(here, family)

    def compute() -> dict[str, Any]:
        scores, steps = scored(here, family, "select", 0, run.recipe.race.final_episodes)
        best = [max((m.name for m in members), key=lambda name: (scores[name], name)) for members in family.sizes]
        return {"scores": scores, "winners": best, "race_steps": steps + growing.race_steps(here, family)}

    record = run.record("choice", compute)
    members = {member.name: member for member in family.members}
    chosen = [
        Chosen(members[name], family.blueprint(name, here.task.name), record["scores"][name])
        for name in record["winners"]
    ]
    for one in chosen:
        run.tell(
            "choose",
            f"{one.member.name}: return {one.mean_return:.4g}, about {100 * here.retention(one.mean_return):.0f} % of the teacher",
        )
    return by_size(chosen), record


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
        if not (settings.enabled and short) or isinstance(
            here.task, RecordedTask
        ):  # nothing to gain where nobody plays
            finished.append(one)
            continue
        search, spent = _search(here, family, one, target)
        changed = not np.array_equal(search.best, family.row(one.member.name))
        family.put(one.member.name, search.best)
        finished.append(replace(one, blueprint=family.blueprint(one.member.name, here.task.name), polished=changed))
        steps, seconds = steps + search.env_steps, seconds + spent
    return finished, Cost(steps, seconds)


def _trained(family: Family, name: str, task: str) -> tuple[Callable[[Any], Policy], Floats]:
    """(weights [P] -> policy, their scales [P]) of a member of a stack."""
    stack, normaliser = family.stack_of(name), family.normalisers.get(task)

    def build(weights: Any) -> Policy:
        return NumpyPolicy(stack.freeze(weights, task, normaliser, name))

    return build, evolution.scales(stack.shapes, family.row(name))


def _search(here: Scene, family: Family, one: Chosen, target: float) -> tuple[evolution.Search, float]:
    """The evolution of one member, from its newest checkpoint to its end, and the seconds it took in all."""
    run, settings, name = here.run, here.run.recipe.polish, one.member.name
    theta = family.row(name)
    build, scale = growing.searched(family, name, here.task.name) or _trained(family, name, here.task.name)
    field = evolution.Field(
        here.task, build, scale, here.seed, [member.name for member in parse(run.recipe.students)].index(name),
        settings.pairs, settings.episodes, settings.sigma, settings.learning_rate, settings.validate_every, settings.validation_episodes, values.shaping(run.recipe, here.teacher),
    )  # fmt: skip
    stage = f"polish-{name}"
    found = runs.load_checkpoint(run.folder, stage, run.tell)
    begin, before = time.perf_counter(), float(found[2]["seconds"]) if found is not None else 0.0
    search = evolution.Search.from_arrays(found[1]) if found is not None else evolution.begin(field, theta)
    spent = before
    run.drop_metrics(
        lambda row: row["stage"] == "polish" and row["member"] == name and row["generation"] > search.generation
    )
    while not evolution.finished(search, settings.generations, target):
        search = evolution.generation(field, search)
        retention = here.retention(search.best_return)
        run.add_metrics([{"stage": "polish", "generation": search.generation, "member": name,
                          "return_mean": search.best_return, "retention": retention}])  # fmt: skip
        spent = before + time.perf_counter() - begin
        runs.save_checkpoint(run.folder, stage, search.generation, search.to_arrays(), {"seconds": spent})
        run.tell(
            "polish",
            f"{name}: generation {search.generation}/{settings.generations}  best {search.best_return:.1f}  about {100 * retention:.0f} %",
        )
    return search, spent
