"""`limbeck stress`: teacher and student under disturbances; of a run the rows go into its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limbeck import identity, reporting, settings, storage, tasks
from limbeck.contracts import RunResult, Stressed
from limbeck.errors import InputError, printable
from limbeck.proof.disturbances import check
from limbeck.runs import RECIPE, RESULT, Tell
from limbeck.stages import stressing
from limbeck.stages.opening import open_task, open_teacher
from limbeck.standalone.duels import Asked, from_run, student_of
from limbeck.standalone.folders import finished

FEWEST, MOST = 2, 100_000  # episodes


@tasks.own_limit()
def stress(
    student: str, teacher: str | None, env: str | None, episodes: int, names: Sequence[str], seed: int | None, tell: Tell
) -> list[Stressed]:  # fmt: skip
    """The undisturbed row, then one for each disturbance and level."""
    check(wanted := tuple(names))
    if not FEWEST <= episodes <= MOST:
        raise InputError(f"--episodes was given {episodes}, allowed {FEWEST} to {MOST:,}. One tells nothing.")
    if teacher is None:
        return _of_run(student, env, episodes, wanted, seed, tell)
    return _of_files(student, teacher, env, episodes, wanted, seed, tell)


def _of_files(
    student: str, teacher: str, env: str | None, episodes: int, names: tuple[str, ...], seed: int | None, tell: Tell
) -> list[Stressed]:  # fmt: skip
    """Two policies, both greedy; nothing is written."""
    if env is None:
        raise InputError("stress needs an environment beside student and teacher. Give its id, such as CartPole-v1.")
    recipe = settings.recipe_from({"teacher": teacher, "env": env, "seed": seed or 0})
    task = open_task(recipe)
    master = open_teacher(recipe, task)
    stressing.refuse_unplayable(task, master.policy)
    stressing.refuse_obstacles(names, task)
    policy, played_by, name, _ = student_of(student, task)
    tell("stress", f"{name} ({played_by}) against {printable(teacher)} (greedy) on {task.name}")
    pair = stressing.pair_of(policy, master.policy, task, "greedy", episodes, recipe.seed)
    return stressing.suite(pair, names, None, {}, tell)[0]


def _of_run(
    student: str, env: str | None, episodes: int, names: tuple[str, ...], seed: int | None, tell: Tell
) -> list[Stressed]:  # fmt: skip
    """A member of a finished run, on its own task against its own teacher."""
    folder, name = _place(student)
    with storage.locked(folder):
        result = finished(folder)
        name = name if name is not None else _smallest(result)
        duel = from_run(f"{folder}:{name}", env, Asked(seed=seed))
        stressing.refuse_unplayable(duel.task, duel.teacher.policy)
        stressing.refuse_obstacles(names, duel.task)
        tell("stress", f"{name}, played by {duel.played_by}, and its teacher on {duel.task.name}")
        pair = stressing.pair_of(duel.student, duel.teacher.policy, duel.task, duel.mode, episodes, duel.seed)
        claims = stressing.claims_of(folder, name, identity.of_teacher(duel.teacher), duel.mode)
        path = stressing.path_of(folder, name, episodes, duel.seed)
        rows, steps = stressing.suite(pair, names, path, claims, tell)
        _tell_run(folder, result, name, rows, steps)
        stressing.settle(path, claims)
        reporting.write(folder)
        storage.write_manifest(folder)
    return rows


def _place(given: str) -> tuple[Path, str | None]:
    """RUN or RUN:MEMBER; a folder whose own name holds a colon is a folder."""
    if (Path(given) / RECIPE).is_file():
        return Path(given), None
    text, colon, name = given.rpartition(":")
    if colon and (Path(text) / RECIPE).is_file():
        return Path(text), name
    raise InputError(
        f"stress was given {printable(given)!r} without a teacher. Allowed: STUDENT TEACHER ENV, or RUN or RUN:MEMBER with the folder of a finished run."
    )


def _smallest(result: RunResult) -> str:
    """The smallest proved member, or where none is the smallest of all."""
    able = [member for member in result.members if member.proof is not None and member.proof.verdict == "proved"]
    return (able or list(result.members))[-1].name


def _tell_run(folder: Path, result: RunResult, name: str, rows: Sequence[Stressed], steps: int) -> None:
    """The rows of these disturbances replace the member's own; rows of other episodes go, since all are read against
    one undisturbed row. The steps that were played are on the bill."""
    (member,) = (member for member in result.members if member.name == name)
    bill = replace(result.bill, stress_steps=result.bill.stress_steps + steps)
    fresh = {(row.disturbance, row.level) for row in rows}
    played = (rows[0].episodes, rows[0].seed)
    same = [row for row in member.stressed if (row.episodes, row.seed) == played]
    kept = [row for row in same if (row.disturbance, row.level) not in fresh]
    told = stressing.in_order([*rows, *kept])
    members = [replace(one, stressed=told) if one.name == name else one for one in result.members]
    storage.write_json(folder / RESULT, replace(result, members=members, bill=bill))
