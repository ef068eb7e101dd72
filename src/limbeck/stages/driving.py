"""Who drives which round: the plan of a run's collection, and the choice that is made by measurement.

`auto`: after the teacher's first rounds students and the teacher share one round, half of the lanes each, and every
member's loss on the fresh rows of both is taken before it trains on either. Students whose errors compound are much
worse where they go themselves than where the teacher goes: then they drive. It costs a forward pass, and no step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from limbeck import losses, objective
from limbeck.collection import BLEND, STUDENT, TEACHER, Plan
from limbeck.contracts import Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import InputError, printable
from limbeck.objective import Term
from limbeck.settings import TIMED_ROUNDS, CollectSettings, Recipe
from limbeck.stages.opening import records_of
from limbeck.stages.scene import Progress, Scene
from limbeck.students.grammar import parse

RATIO = 2.0  # loss on students' states over that on the teacher's, above which students drive (methods.md 2.2)
SMALLEST = 1e-6  # nats below which losses count as equal
CAPACITY = 0.02  # nats on the teacher's own states that a student of enough capacity falls below
STUDENTS_OWN = ("regret", "critic_guided")  # losses that say what an error costs on the states of the student itself
Driver = Literal["teacher", "student", "beta", "trb"]


def plan(here: Scene, done: Progress, number: int, rounds: int) -> Plan:
    """Who drives round `number`. Lanes are so few that each lasts about one of the teacher's episodes."""
    recipe = here.run.recipe
    settings = recipe.collect
    terms = objective.parse(recipe.imitate.loss, here.teacher.policy.head)
    steps = _budget(recipe) // _first(settings) if settings.driver == "offline" else _steps(recipe)
    lanes = max(1, min(settings.slots, round(steps / max(here.teacher_steps, 1.0))))
    probe = settings.driver == "auto" and number == _first(settings)
    return Plan(
        steps,
        max(lanes, 2) if probe else lanes,
        _driver(settings, done, number),
        lmbda=0.5 if probe else settings.lmbda,
        beta=beta(settings, number),
        trust=_trust(settings, number / max(rounds, 1)),
        random_share=settings.random_share,
        teacher_mode=here.mode,
        temperature=done.temperature,
        unit=objective.unit(terms, done.temperature, done.gap),
        student_mode=settings.student_mode,
    )


def plays(here: Scene, number: int) -> bool:
    """Whether anything is played in round `number`: not after an offline run's first rounds, nor with recordings after
    the round that reads them."""
    if here.records is not None:
        return number == 0
    settings = here.run.recipe.collect
    return settings.driver != "offline" or number < _first(settings)


def beta(settings: CollectSettings, number: int) -> float:
    """Probability that the teacher acts in round `number` (Ross et al. 2011).

    >>> [beta(CollectSettings(beta_schedule="exponential", beta=0.5), n) for n in range(3)]
    [1.0, 0.5, 0.25]
    """
    if settings.beta_schedule == "linear":
        return max(0.0, 1.0 - number / settings.beta_rounds)
    return settings.beta if settings.beta_schedule == "constant" else settings.beta**number


def _driver(settings: CollectSettings, done: Progress, number: int) -> Driver:
    if number < settings.teacher_rounds or settings.driver == "offline":
        return "teacher"
    if settings.driver == "auto":
        return cast(Driver, done.driver or "student")
    return settings.driver


def _first(settings: CollectSettings) -> int:
    """Rounds that the teacher drives before anything else; offline needs one."""
    return max(1, settings.teacher_rounds)


def _steps(recipe: Recipe) -> int:
    most = affordable_rounds(recipe)
    return recipe.collect.steps if recipe.env_steps is None or most is None else recipe.env_steps // most


def _budget(recipe: Recipe) -> int:
    return recipe.env_steps if recipe.env_steps is not None else recipe.imitate.rounds * recipe.collect.steps


def affordable_rounds(recipe: Recipe) -> int | None:
    """Equal rounds of at most collect.steps that use up the budget of environment steps; None without one."""
    return None if recipe.env_steps is None else math.ceil(recipe.env_steps / recipe.collect.steps)


def fewest_rounds(recipe: Recipe) -> int:
    """Rounds that a run surely has: a time limit may end it after those that are timed.

    >>> fewest_rounds(Recipe("t", env_steps=1000)), fewest_rounds(Recipe("t", seconds=60.0))
    (1, 2)
    """
    most = affordable_rounds(recipe)
    if recipe.seconds is None:
        return recipe.imitate.rounds if most is None else most
    return recipe.seconds_rounds or (TIMED_ROUNDS if most is None else min(TIMED_ROUNDS, most))


def _trust(settings: CollectSettings, share: float) -> float:
    return settings.trust * max(0.0, 1.0 - share / settings.trust_share) if settings.trust_share else 0.0


# ---------------------------------------------------------------- rows by who drove them


def fresh_rows(data: Dataset, by: str) -> NDArray[np.int64]:
    """Numbers of the newest round's rows that `by` drove: "student" (blends count as theirs) or "teacher"."""
    begin = data.rows - len(data.shards[-1]["first"])
    drivers = np.asarray(data.shards[-1]["driver"])
    wanted = (STUDENT, BLEND) if by == "student" else (TEACHER,)
    return begin + np.flatnonzero(np.isin(drivers, wanted))


# ---------------------------------------------------------------- auto


def undecided(here: Scene, done: Progress, number: int) -> bool:
    """Whether round `number` is the one after whose play `auto` decides."""
    settings = here.run.recipe.collect
    return settings.driver == "auto" and not done.driver and number == _first(settings)


def decide(
    here: Scene, done: Progress, losses: Mapping[str, tuple[float, float]], measure: str
) -> tuple[Progress, list[dict[str, Any]]]:
    """The driver of all later rounds, from every member's mean loss on (students', teacher's) fresh states; its lines.

    The ratio is the geometric mean over the members, who share the data. Told, and kept in records/driving.json."""

    def compute() -> dict[str, Any]:
        ratios = {name: (s + SMALLEST) / (t + SMALLEST) for name, (s, t) in losses.items()}
        ratio = math.exp(sum(math.log(value) for value in ratios.values()) / len(ratios))
        members = {name: {"student": s, "teacher": t, "ratio": ratios[name]} for name, (s, t) in losses.items()}
        driver = "student" if ratio > RATIO else "teacher"
        return {"driver": driver, "ratio": ratio, "threshold": RATIO, "measure": measure, "members": members}

    found = here.run.record("driving", compute)
    unit = "KL" if measure in ("kl", "q_kl") else f"{measure} (no KL for this head)"
    here.run.tell(
        "collect",
        f"{unit} on students' states is {found['ratio']:.2f} times that on the teacher's, students drive above "
        f"{RATIO:g}: the {found['driver']} drives from here on",
    )
    row = {"stage": "driving", "round": done.round, "env_steps": done.collection_steps}
    row |= {key: found[key] for key in ("driver", "ratio", "threshold", "measure", "members")}
    return replace(done, driver=found["driver"]), [row]


# ---------------------------------------------------------------- refusals


def refuse(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> None:
    """Raise InputError for settings of collection that contradict each other or that the task cannot serve."""
    settings = recipe.collect
    driver = settings.driver
    given = {
        "collect.lmbda": settings.lmbda != 1.0 and driver in ("teacher", "offline"),
        "collect.student_mode=sampled": settings.student_mode != "greedy" and driver in ("teacher", "offline", "trb"),
        "collect.beta_schedule": settings.beta_schedule != "linear" and driver != "beta",
    }
    for name, useless in given.items():
        if useless:
            raise InputError(f"{name} says how students drive, and collect.driver={driver} leaves it no use. Drop it.")
    if driver not in ("student", "teacher") and records_of(recipe, task, teacher) is not None:
        raise InputError(
            f"collect.driver={driver} is about who plays, and with recordings nobody does. Drop it, or give an env to play in."
        )
    if settings.lmbda != 1.0 and records_of(recipe, task, teacher) is not None:
        raise InputError("collect.lmbda is about who plays, and with recordings nobody does. Drop it.")
    if driver == "auto":
        _refuse_auto(recipe, task)
    if driver == "offline" and settings.teacher_rounds > fewest_rounds(recipe):
        raise InputError(
            f"collect.driver=offline plays in the first {settings.teacher_rounds} rounds (collect.teacher_rounds), and a run "
            f"of this budget may have {fewest_rounds(recipe)}: the rest would never be played. Lower collect.teacher_rounds, or give more rounds."
        )
    _refuse_loss(recipe, teacher, terms)


def _refuse_loss(recipe: Recipe, teacher: Teacher, terms: Sequence[Term]) -> None:
    """Losses that who drives leaves without what they are about."""
    settings, loss = recipe.collect, printable(recipe.imitate.loss)
    own = [t.name for t in terms if t.name in STUDENTS_OWN and t.final is not None and t.final > t.weight]
    if own and (settings.driver in ("teacher", "offline") or not settings.lmbda):
        who = f"collect.driver={settings.driver}" if settings.lmbda else "collect.lmbda=0"
        raise InputError(
            f"imitate.loss = {loss!r} ends in {own[0]}, which says what an error costs on the student's own states, and with "
            f"{who} students visit none. Allowed: collect.driver=student, trb, beta or auto."
        )
    head = losses.student_head([term.name for term in terms], teacher.policy.head)
    if settings.student_mode == "sampled" and head.kind == "q":
        raise InputError(
            f"collect.student_mode=sampled draws from a distribution, and students of imitate.loss = {loss!r} state action values, "
            "which are none. Drop it, or imitate with q_kl."
        )


def _refuse_auto(recipe: Recipe, task: Task) -> None:
    settings = recipe.collect
    if all(member.architecture.grown for member in parse(recipe.students)):
        raise InputError(
            "collect.driver=auto compares losses of trained students, and there are trees and rules alone. "
            "Add a trained one such as mlp:16, or choose collect.driver=student."
        )
    if settings.teacher_rounds < 1:
        raise InputError(
            "collect.driver=auto compares students with the teacher after the teacher's rounds, and collect.teacher_rounds = 0. Allowed: 1 and above."
        )
    if settings.lmbda != 1.0:
        raise InputError(
            f"collect.driver=auto chooses who drives, and collect.lmbda = {settings.lmbda:g} chooses too. Drop one of them."
        )
    if task.max_lanes == 1 or settings.slots < 2:
        raise InputError(
            "collect.driver=auto lets students and the teacher drive side by side, which takes two lanes; here there is one. "
            "Give more collect.slots or an environment of more copies, or choose collect.driver=student."
        )
    rounds = affordable_rounds(recipe) or recipe.imitate.rounds
    if rounds <= _first(settings):
        raise InputError(
            f"collect.driver=auto decides in round {_first(settings) + 1}, and there are {rounds}. Give more rounds, or name the driver."
        )
