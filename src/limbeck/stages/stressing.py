"""The robustness of what ships: the smallest proved member and its teacher under disturbances, row by row resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import seeding, storage
from limbeck.contracts import Artifact, MemberReport, Mode, Policy, Stressed, Task
from limbeck.errors import InputError, StorageError, printable
from limbeck.proof.disturbances import DISTURBANCES, check
from limbeck.proof.robustness import Ground, Pair, cases, ground, kept, stressed
from limbeck.reporting.reading import build
from limbeck.runs import Tell
from limbeck.settings import Recipe
from limbeck.stages import proving
from limbeck.stages.choosing import Chosen
from limbeck.stages.proving import Proved
from limbeck.stages.scene import Scene
from limbeck.tasks import RecordedTask
from limbeck.teachers.demonstrations import DemonstratedPolicy

FOLDER = "stress"


def refuse(recipe: Recipe, task: Task, teacher: Policy) -> None:
    """Refuse disturbances that nobody knows, and tasks or teachers that cannot be played again."""
    check(recipe.stress.disturbances)
    if recipe.stress.episodes:
        refuse_unplayable(task, teacher)


def refuse_unplayable(task: Task, teacher: Policy) -> None:
    """Recordings cannot be played under disturbances, neither as a task nor as a teacher."""
    if isinstance(task, RecordedTask) or isinstance(teacher, DemonstratedPolicy):
        raise InputError(
            "robustness was asked for where there are recordings alone, which cannot be played under disturbances. "
            "Set stress.episodes=0, or give an environment and a teacher that plays."
        )


def stress(
    here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]], proved: Proved
) -> dict[str, list[Stressed]]:
    """The rows of the smallest proved member (of the smallest, where none is), as the recipe asks for them."""
    settings = here.run.recipe.stress
    if not settings.episodes:
        return {}
    able = [one for one in chosen if (found := proved.proofs.get(one.member.name)) and found.verdict == "proved"]
    shown = (able or list(chosen))[-1]
    name = shown.member.name

    def compute() -> dict[str, Any]:
        _, player = next(iter(proving.players(shown.blueprint, artifacts[name]).items()))
        pair = pair_of(player, here.teacher.policy, here.task, here.mode, settings.episodes, here.seed)
        claims = claims_of(here.run.folder, name, str(here.run.recipe.teacher_sha256), here.mode)
        path = path_of(here.run.folder, name, settings.episodes, here.seed)
        rows = suite(pair, settings.disturbances, path, claims, here.run.tell)
        return {"stressed": rows, "stress_steps": sum(row.env_steps for row in rows)}

    record = here.run.record(f"stress-{name}", compute)
    return {name: [build(Stressed, row, "stressed") for row in record["stressed"]]}


def filled(members: Sequence[MemberReport], found: Mapping[str, Sequence[Stressed]]) -> list[MemberReport]:
    """The members with their robustness."""
    return [replace(member, stressed=tuple(found.get(member.name, ()))) for member in members]


def path_of(run: Path, member: str, episodes: int, seed: int) -> Path:
    """Where the rows of a member are kept while they are played, and after."""
    return run / FOLDER / f"{member}.episodes-{episodes}.seed-{seed}.json"


def claims_of(run: Path, member: str, teacher_sha256: str, mode: Mode) -> dict[str, str]:
    """What stored rows must agree with to be told again."""
    student = storage.sha256(run / "students" / member / "policy.safetensors")
    return {"student": student, "teacher": teacher_sha256, "mode": mode}


def pair_of(student: Policy, teacher: Policy, task: Task, mode: Mode, episodes: int, seed: int) -> Pair:
    """Student and teacher on the first episodes of the stage's own seeds; no more than a labelled set has."""
    count = min(episodes, task.proof_episodes or episodes)
    return Pair(student, teacher, task, mode, [seeding.episode_seed(seed, "stress", i) for i in range(count)], seed)


# ---------------------------------------------------------------- the suite


def suite(
    pair: Pair, names: tuple[str, ...], path: Path | None, claims: Mapping[str, str], tell: Tell
) -> list[Stressed]:
    """The undisturbed row and those of the named disturbances (all for none), in their order; rows in `path` that were
    made from the same policies are not played again."""
    wanted = cases(check(names), pair.task, lambda name, why: tell("stress", f"{name}: left out, {why}"))
    base, known = read_rows(path, claims) or (None, {})
    if base is None:
        base = ground(pair)
        _write(path, claims, base, known)
    _tell(tell, base.row)
    for case in wanted:
        if case not in known:
            (known[case],) = stressed(pair, base, [case])
            _write(path, claims, base, known)
        _tell(tell, known[case])
    return [base.row, *(known[case] for case in wanted)]


def _tell(tell: Tell, row: Stressed) -> None:
    what = "undisturbed" if row.disturbance == "none" else f"{row.disturbance} {row.level:g} {row.unit}"
    tell("stress", f"{what}: teacher {row.teacher:.4g}, student {row.student:.4g}, keeps {kept(row)}")


def _write(path: Path | None, claims: Mapping[str, str], base: Ground, known: Mapping[Any, Stressed]) -> None:
    if path is not None:
        spread = {key: {"shape": np.shape(value), "values": np.ravel(value)} for key, value in base.spread.items()}
        content = {"claims": claims, "undisturbed": base.row, "random": base.random, "spread": spread}
        storage.write_json(path, {**content, "rows": list(known.values())})


def read_rows(path: Path | None, claims: Mapping[str, str]) -> tuple[Ground, dict[tuple[str, float], Stressed]] | None:
    """What was played before; None where nothing was, or for other policies."""
    if path is None or not path.exists():
        return None
    stored = storage.read_json(path)
    try:
        if stored["claims"] != dict(claims):
            return None
        spread = {
            key: np.asarray(one["values"], np.float64).reshape(one["shape"]) for key, one in stored["spread"].items()
        }
        rows = [build(Stressed, row, "stressed") for row in (stored["undisturbed"], *stored["rows"])]
        base = Ground(rows[0], np.asarray(stored["random"], np.float64), spread)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{printable(path)} is damaged: {printable(error)}. Remove it; it is then played again."
        ) from error
    return base, {(row.disturbance, row.level): row for row in rows[1:]}


def in_order(rows: Sequence[Stressed]) -> tuple[Stressed, ...]:
    """Undisturbed first, then as DISTURBANCES has them."""
    places = ["none", *DISTURBANCES]
    return tuple(sorted(rows, key=lambda row: (places.index(row.disturbance), row.level)))


def new_steps(before: Sequence[Stressed], rows: Sequence[Stressed]) -> int:
    """Environment steps of the rows that were not among those before."""
    known = {(row.disturbance, row.level, row.episodes, row.student, row.teacher) for row in before}
    told = [(row, (row.disturbance, row.level, row.episodes, row.student, row.teacher)) for row in rows]
    return sum(row.env_steps for row, key in told if key not in known)
