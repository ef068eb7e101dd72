"""Population-based tuning (Jaderberg et al. 2017, arXiv:1711.09846) of temperature and weights over a stack, and what
refuses the options of families that have no family to work on.

Members of one size differ in factors on the temperature and on the weights of the loss's terms. Every few rounds the
worst quarter of a size, by return on seeds that all share, copies weights, Adam's moments and factors of the best
quarter, and moves the factors up or down.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from limbeck import seeding
from limbeck.contracts import Head, LossEntry
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.settings import Recipe
from limbeck.stages import driving
from limbeck.stages.choosing import scored
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family, Rows
from limbeck.students.grammar import Architecture, MemberSpec, parse

TEMPERATURE = "temperature"
FACTORS, MOVES = 258, 259  # end the counters of a member's first factors and of a size's moves
MOVE = 1.25  # factors are multiplied by it or by its inverse, either with probability 1/2
SHARE = 0.25  # of a size that copies, and that is copied


def tunable(terms: Sequence[Term], head: Head) -> tuple[str, ...]:
    """What may differ among members: the temperature where a loss has one for the teacher's head, and all weights
    after the first.

    One weight among several says nothing to Adam, whose step does not depend on the gradient's scale.

    >>> tunable((Term("kd", 1.0), Term("cross_entropy", 0.5)), Head("categorical", (4,)))
    ('temperature', 'cross_entropy')
    """
    heated = any(_heated(LOSSES[term.name], head) for term in terms)
    return (*([TEMPERATURE] if heated else []), *(term.key for term in terms[1:]))


def _heated(entry: LossEntry, head: Head) -> bool:
    """Whether a loss depends on the temperature: `kd` always, with a Q teacher what compares with softmax(Q / tau);
    losses on Q itself are in units of its gap or of reward."""
    softened = "soft_q" in entry.needs or ("q" in entry.needs and not {"regret", "next"} & entry.needs)
    return TEMPERATURE in entry.needs or (head.kind == "q" and softened)


def refuse(recipe: Recipe, terms: Sequence[Term], head: Head) -> None:
    """Raise InputError for a population without anything to tune, anybody to copy or a round to copy in, an assistant
    without students, and grown students that shall draw their actions."""
    settings, members = recipe.imitate, parse(recipe.students)
    _refuse_drawing(recipe, members)
    sizes = Counter(member.architecture for member in members if not member.architecture.grown)
    kinds = {(a.recurrent, a.kind == "cnn"): set[Any]() for a in sizes}
    for architecture in sizes:
        kinds[architecture.recurrent, architecture.kind == "cnn"].add(architecture)
    if settings.assistant and all(len(found) < 2 for found in kinds.values()):
        raise InputError(
            f"imitate.assistant = {settings.assistant:g}: every size learns from the next larger one, and there is one size "
            "of each kind (trees and rules are not trained by steps). Add students, or drop it."
        )
    if settings.population:
        _refuse_population(recipe, terms, head, sizes)


def _refuse_drawing(recipe: Recipe, members: Sequence[MemberSpec]) -> None:
    grown = [member.architecture.spec for member in members if member.architecture.grown]
    if grown and recipe.collect.student_mode == "sampled":
        raise InputError(
            "collect.student_mode=sampled draws from what a student says; trees and rules learn the teacher's greedy answer "
            f"alone and do not say how sure it is ({', '.join(dict.fromkeys(grown))}). Drop them, or choose greedy."
        )


def _refuse_population(recipe: Recipe, terms: Sequence[Term], head: Head, sizes: Mapping[Architecture, int]) -> None:
    settings, found = recipe.imitate, tunable(terms, head)
    if not found:
        raise InputError(
            f"imitate.population has nothing to tune in loss {settings.loss!r}: one weight and no temperature. "
            "Allowed: sums such as 'kl + 0.5*value', or kd and q_kl, which have a temperature."
        )
    if any(architecture.whole for architecture in sizes):
        raise InputError("imitate.population copies members, and nested widths share their numbers. Use mlp instead.")
    if max(sizes.values(), default=0) < 2:
        raise InputError(
            "imitate.population needs several members of a size that is trained by steps. Write for example mlp:16x16@8."
        )
    alike = {
        "the costs to come of entropy_regularised are": any("own_rollout" in LOSSES[t.name].needs for t in terms),
        "the worst inputs of imitate.adversarial are": settings.adversarial > 0,
    }
    for what, asked in alike.items():
        if asked and TEMPERATURE in found and head.kind == "q":
            raise InputError(
                f"imitate.population gives every member its own temperature, and {what} found at one. Drop either."
            )
    rounds = driving.affordable_rounds(recipe) or settings.rounds
    if recipe.seconds is None and not any(_copies_after(recipe, number, rounds) for number in range(1, rounds)):
        raise InputError(
            f"imitate.population copies every {settings.population_every} rounds, but neither after the last of {rounds} nor "
            f"where a race drops members (race.rounds = {', '.join(map(str, recipe.race.rounds))}): never. "
            "Lower imitate.population_every, or move the races."
        )


def begin(recipe: Recipe, family: Family, terms: Sequence[Term], head: Head) -> None:
    """Fresh factors, log-uniform in 1 / spread to spread; those of seed 0 are 1: the recipe's own values take part."""
    settings = recipe.imitate
    if not settings.population:
        return
    width = math.log(settings.population_spread)
    for rows in family.stacks:
        for key in tunable(terms, head):
            drawn = [
                0.0 if m.seed == 0 else _draw(recipe.seed, m.name, key).uniform(-width, width) for m in rows.members
            ]
            rows.tuned[key] = torch.from_numpy(np.exp(drawn).astype(np.float32))


def _draw(run_seed: int, name: str, key: str) -> np.random.Generator:
    return seeding.generator(run_seed, "train", *name.encode(), FACTORS, *key.encode())


def due(recipe: Recipe, done: Progress, horizon: int) -> bool:
    """Whether the round that just ended is followed by copying: not where a race drops the worse half, not at the end."""
    return recipe.imitate.population and _copies_after(recipe, done.round, horizon)


def _copies_after(recipe: Recipe, rounds: int, horizon: int) -> bool:
    """Whether members copy each other after so many rounds of `horizon`."""
    last = rounds >= horizon or rounds in recipe.race.rounds
    return rounds % recipe.imitate.population_every == 0 and not last


def exploit(here: Scene, family: Family, judged: Family, done: Progress, lines: list[dict[str, Any]]) -> Progress:
    """Judge all members by return, let the worst copy the best; adds a line per member to `lines`."""
    settings = here.run.recipe
    scores, steps = scored(here, judged, "race", done.round * settings.race.episodes, settings.race.episodes)
    for rows in family.stacks:
        rng = seeding.generator(here.seed, "train", done.round, MOVES, *rows.members[0].architecture.spec.encode())
        copied = copy(rows, scores, settings.imitate.population_spread, rng)
        lines += [
            {"stage": "population", "round": done.round - 1, "env_steps": done.collection_steps, "member": m.name,
             "return_mean": scores[m.name], "retention": here.retention(scores[m.name]), "copied": copied.get(m.name),
             **{f"factor_{key}": float(factors[k]) for key, factors in rows.tuned.items()}}
            for k, m in enumerate(rows.members)
        ]  # fmt: skip
    return replace(done, race_steps=done.race_steps + steps)


def copy(rows: Rows, scores: Mapping[str, float], spread: float, rng: np.random.Generator) -> dict[str, str]:
    """Exploit and explore within one size: who copied whom. The factors stay within 1 / spread to spread."""
    names = [member.name for member in rows.members]
    ranked = sorted(range(len(names)), key=lambda k: (-scores[names[k]], names[k]))
    count = min(max(1, int(SHARE * len(names))), len(names) // 2)
    copied = {}
    for best, worst in zip(ranked[:count], ranked[::-1][:count], strict=True):
        if scores[names[best]] <= scores[names[worst]]:
            continue  # as good: nothing to learn
        for tensor in (rows.theta, rows.mean, rows.square, *rows.beside.values()):
            tensor[worst] = tensor[best]
        for factors in rows.tuned.values():
            moved = float(factors[best]) * (MOVE if rng.random() < 0.5 else 1 / MOVE)
            factors[worst] = min(max(moved, 1 / spread), spread)
        copied[names[worst]] = names[best]
    return copied
