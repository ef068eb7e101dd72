"""When to stop, and which weights leave: plateaus, rows kept out of training, the best round, the running mean.

Members are compared by `objective.measure`: KL over actions, for continuous ones the divergence in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import imitation, objective, spaces
from limbeck.collection import TEACHER
from limbeck.contracts import Task, Teacher
from limbeck.dataset import Dataset
from limbeck.errors import InputError, printable
from limbeck.imitation import Regularising, Table
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.settings import ImitateSettings, Recipe
from limbeck.stages import driving
from limbeck.stages.opening import records_of
from limbeck.stages.scene import Progress, Scene
from limbeck.stages.views import student_view
from limbeck.students.family import Family
from limbeck.students.grammar import parse

# ---------------------------------------------------------------- rows kept out of training


def held_out(data: Dataset, share: float) -> torch.Tensor | None:
    """[N] bool, whole episodes: every (1 / share)-th that was begun, the second one first, so that rounds to come change
    nothing; None for share 0. What a round's end cut in two counts as one episode and another."""
    if not share:
        return None
    episode = np.cumsum(data.first()) - 1
    turn = episode * share + 1 - 2 * share
    return torch.from_numpy(np.floor(turn + share + 1e-9) > np.floor(turn + 1e-9))


def mean_losses(family: Family, table: Table, terms: Sequence[Term], rows: NDArray[np.int64]) -> dict[str, float]:
    """Member -> its mean loss on the rows of a table."""
    measure = objective.measure(terms, table.head)
    found: dict[str, float] = {}
    for one in family.stacks:
        means = imitation.disagreements(one, table, measure, torch.from_numpy(rows)).double().mean(1).tolist()
        found |= {member.name: value for member, value in zip(one.members, means, strict=True)}
    return found


# ---------------------------------------------------------------- plateaus


def plateaued(history: Sequence[float], patience: int, gain: float) -> bool:
    """Whether the last `patience` values all failed to be `gain` (a share) below the best before them.

    >>> plateaued([1.0, 0.5, 0.5, 0.495, 0.51], 3, 0.02), plateaued([1.0, 0.5, 0.5, 0.4, 0.51], 3, 0.02)
    (True, False)
    """
    if len(history) <= patience:
        return False
    return min(history[-patience:]) > (1 - gain) * min(history[:-patience])


def extended(history: Mapping[str, list[float]], values: Mapping[str, float]) -> dict[str, list[float]]:
    """Each surviving member's history with its newest value."""
    return {name: [*history.get(name, []), value] for name, value in values.items()}


def _why(settings: ImitateSettings, done: Progress, number: int) -> str:
    """Why the run stops after round `number`; "" if it goes on. Every member must have stopped improving."""
    if settings.stop == "plateau" and done.fresh:
        flat = all(plateaued(history, settings.patience, settings.stop_gain) for history in done.fresh.values())
        if flat:
            return f"no member's loss on fresh student states fell by {settings.stop_gain:.0%} in {settings.patience} rounds"
    if settings.stop == "validation" and done.best and number - max(done.best.values()) >= settings.patience:
        return f"no member's loss on held-out episodes fell in {settings.patience} rounds"
    return ""


# ---------------------------------------------------------------- around the gradient steps of a round


def before(
    here: Scene, family: Family, data: Dataset, table: Table, terms: Sequence[Term], done: Progress
) -> tuple[Progress, list[dict[str, Any]]]:
    """What is measured on a round's new rows before anybody trains on them: the driver of `auto`, fresh losses."""
    recipe, number = here.run.recipe, done.round
    measured = recipe.imitate.stop == "plateau" or driving.undecided(here, done, number)
    if not (measured and driving.plays(here, number)) or number == 0:
        return done, []
    students, teachers = (driving.fresh_rows(data, by) for by in ("student", "teacher"))
    lines: list[dict[str, Any]] = []
    fresh = mean_losses(family, table, terms, students) if len(students) else {}
    if driving.undecided(here, done, number):
        taught = mean_losses(family, table, terms, teachers)
        pairs = {name: (fresh[name], taught[name]) for name in fresh}
        done, lines = driving.decide(here, done, pairs, objective.measure(terms, table.head).name)
    if recipe.imitate.stop == "plateau" and fresh:
        done = replace(done, fresh=extended(done.fresh, fresh))
        lines += [_line(done, number, member=name, fresh_loss=value) for name, value in fresh.items()]
    return done, lines


def after(
    here: Scene, family: Family, data: Dataset, table: Table, terms: Sequence[Term], done: Progress
) -> tuple[Progress, list[dict[str, Any]]]:
    """What is measured once a round was trained on: held-out episodes, the teacher's own states with `auto`."""
    recipe, number = here.run.recipe, done.round - 1
    lines: list[dict[str, Any]] = []
    if table.held is not None and bool(table.held.any()):
        done, lines = _validated(family, table, terms, done)
    if recipe.collect.driver == "auto" and done.driver:
        probe = data.shards[: recipe.collect.teacher_rounds + 1]
        drivers = np.concatenate([np.asarray(shard["driver"]) for shard in probe])
        taught = mean_losses(family, table, terms, np.flatnonzero(drivers == TEACHER))
        done = replace(done, taught=extended(done.taught, taught))
        lines += [_line(done, number, member=name, taught_loss=value) for name, value in taught.items()]
    if why := _why(recipe.imitate, done, number):
        done = replace(done, stopped=why)
        lines.append(_line(done, number, why=why, rounds_skipped=max(done.rounds - done.round, 0)))
        here.run.tell("imitate", f"stopped after round {done.round} of {done.rounds or '?'}: {why}")
    return done, lines


def _validated(
    family: Family, table: Table, terms: Sequence[Term], done: Progress
) -> tuple[Progress, list[dict[str, Any]]]:
    """Held-out losses; a member whose weights are better than its best so far, on the same rows, replaces them.

    Held-out rows grow with every round, so the best weights are measured again and not remembered by their number."""
    assert table.held is not None
    rows, number = torch.nonzero(table.held)[:, 0].numpy(), done.round - 1
    shown = evaluated(family, keep_best=False)
    now = mean_losses(shown, table, terms, rows)
    for one, source in zip(family.stacks, shown.stacks, strict=True):
        one.beside.setdefault("best", source.theta.clone())
    then = mean_losses(_with(family, "best"), table, terms, rows)
    best = {name: done.best.get(name, number) for name in now}
    for one, source in zip(family.stacks, shown.stacks, strict=True):
        for k, member in enumerate(one.members):
            if now[member.name] < then[member.name]:
                one.beside["best"][k], best[member.name] = source.theta[k], number
    return replace(done, best=best), [
        _line(done, number, member=name, held_out_loss=now[name], best_round=best[name]) for name in now
    ]


def _line(done: Progress, number: int, **values: Any) -> dict[str, Any]:
    return {"stage": "stopping", "round": number, "env_steps": done.collection_steps, **values}


def tell_capacity(here: Scene, done: Progress) -> None:
    """Name the members that no longer improve on the teacher's own states, and are not close to it there."""
    settings = here.run.recipe.imitate
    if not here.teacher.policy.head.discrete:
        return  # the threshold is in nats
    small = {
        name: history[-1]
        for name, history in done.taught.items()
        if history[-1] > driving.CAPACITY and plateaued(history, settings.patience, settings.stop_gain)
    }
    for name, value in small.items():
        here.run.tell(
            "imitate",
            f"{name}: KL {value:.3f} nat on the teacher's own states and no longer falling (above {driving.CAPACITY:g}): too small to "
            "be the teacher; a loss in units of return (anneal, regret) and polish suit it",
        )


# ---------------------------------------------------------------- which weights are raced, chosen and shipped


def evaluated(family: Family, *, keep_best: bool) -> Family:
    """The family as it is judged: with its best weights, else with their running mean, else as it is."""
    for key in (["best"] if keep_best else []) + ["average"]:
        if any(key in one.beside for one in family.stacks):
            return _with(family, key)
    return family


def _with(family: Family, key: str) -> Family:
    stacks = [replace(one, theta=one.beside[key].clone(), beside={}) for one in family.stacks]
    return Family(family.ports, family.normalisers, stacks, family.groves)


def regularising(settings: ImitateSettings) -> Regularising:
    """The recipe's options against over-fitting."""
    return Regularising(
        settings.shift, settings.weight_decay, settings.dropout, settings.adversarial,
        settings.adversarial_radius, settings.adversarial_steps, settings.average,
    )  # fmt: skip


# ---------------------------------------------------------------- refusals


def refuse(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> None:
    """Raise InputError for stop rules and options that this run has nothing to apply to."""
    settings = recipe.imitate
    if settings.stop == "plateau":
        _refuse_plateau(recipe, task, teacher)
    _refuse_schedule(settings, terms)
    if (settings.keep_best or settings.stop == "validation") and not settings.validation_share:
        name = "imitate.keep_best" if settings.keep_best else "imitate.stop=validation"
        raise InputError(
            f"{name} needs episodes that are kept out of training, and imitate.validation_share is 0. Give a share such as 0.1."
        )
    if settings.shift:
        _refuse_shift(recipe, task, teacher)
    if settings.priority:
        _refuse_priority(recipe, terms)
    members = parse(recipe.students)
    if settings.dropout and not any(member.architecture.widths for member in members):
        raise InputError(
            f"imitate.dropout acts on hidden dense layers, and none of {', '.join(recipe.students)} has one. Drop it, or add mlp:16."
        )


def _refuse_schedule(settings: ImitateSettings, terms: Sequence[Term]) -> None:
    """What is judged by the divergence alone would undo a schedule that trades it away."""
    if not any(term.final is not None for term in terms):
        return
    loss = printable(settings.loss)
    if settings.stop != "never":
        raise InputError(
            f"imitate.stop={settings.stop} would end the schedule of imitate.loss = {loss!r} before its last weights. Drop one of them."
        )
    if settings.keep_best:
        raise InputError(
            f"imitate.keep_best takes the round of the smallest divergence, which the schedule of imitate.loss = {loss!r} trades away. "
            "Drop one of them."
        )


def _refuse_plateau(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    driver = recipe.collect.driver
    if driver in ("teacher", "offline") or not recipe.collect.lmbda or records_of(recipe, task, teacher) is not None:
        raise InputError(
            "imitate.stop=plateau looks at fresh states of students, and here no student plays. "
            "Allowed: imitate.stop=validation with imitate.validation_share, or collect.driver=student, beta or trb."
        )
    if driver == "auto":
        raise InputError(
            "imitate.stop=plateau looks at fresh states of students, and collect.driver=auto may find that the teacher drives. "
            "Allowed: imitate.stop=validation with imitate.validation_share, or collect.driver=student, beta or trb."
        )


def _refuse_shift(recipe: Recipe, task: Task, teacher: Teacher) -> None:
    view = student_view(recipe, task, teacher)
    if task.spec.agents > 1 or not spaces.has_image(task.spec.observation_space, view, task.spec.agents):
        raise InputError(
            f"imitate.shift = {recipe.imitate.shift} moves pictures, and students of {task.name} see {task.spec.agents} agents' numbers or none. "
            "Allowed: one picture of one agent. Drop it, or pick a picture with keys."
        )


def _refuse_priority(recipe: Recipe, terms: Sequence[Term]) -> None:
    recurrent = [m.name for m in parse(recipe.students) if m.architecture.recurrent]
    if recurrent:
        raise InputError(
            f"imitate.priority draws single rows, and {recurrent[0]} learns from sequences. Drop it, or the recurrent students."
        )
    whole = [term.name for term in terms if LOSSES[term.name].kind == "batch"]
    if whole:
        raise InputError(
            f"imitate.priority weighs rows, and {whole[0]} is a loss of a whole minibatch, which has no weights. Drop one of them."
        )
