"""The robustness of what ships: the smallest proved member and its teacher under disturbances, row by row resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import seeding, storage
from limbeck.contracts import Artifact, MemberReport, Mode, Policy, Spec, Stressed, Task
from limbeck.errors import InputError, StorageError, printable
from limbeck.proof.disturbances import DISTURBANCES, check, obstacle, unit
from limbeck.proof.robustness import Ground, Pair, cases, ground, kept, level_of, stressed
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
Case = tuple[str, float]  # disturbance, level


@dataclass
class Kept:
    """What was played of one pair, as its file keeps it."""

    base: Ground | None = None
    rows: dict[Case, Stressed] = field(default_factory=dict)
    billed: int = 0  # environment steps that are on the bill of the run
    replaced: int = 0  # environment steps of rows that were played again

    @property
    def steps(self) -> int:
        """Environment steps of all that is kept, and of what it replaced."""
        own = 0 if self.base is None else self.base.row.env_steps
        return self.replaced + own + sum(row.env_steps for row in self.rows.values())

    def lacks(self, case: Case, spec: Spec) -> bool:
        """Whether a row has to be played: there is none, or it is of an attack or unit that is no longer this one's."""
        row = self.rows.get(case)
        return row is None or row.unit != unit(case[0], spec)


def refuse(recipe: Recipe, task: Task, teacher: Policy) -> None:
    """Refuse disturbances that nobody knows, and tasks or teachers that cannot be played again."""
    check(recipe.stress.disturbances)
    if recipe.stress.episodes:
        refuse_unplayable(task, teacher)
        refuse_obstacles(recipe.stress.disturbances, task)


def refuse_obstacles(names: Sequence[str], task: Task) -> None:
    """Refuse disturbances that were asked for by name and cannot be played on this task."""
    able = [name for name in DISTURBANCES if not obstacle(name, task)]
    for name in names:
        if name not in able:
            raise InputError(
                f"the disturbance {name!r} cannot be played on {printable(task.name)}: {obstacle(name, task)}. "
                f"Allowed here: {', '.join(able) or 'none'}."
            )


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
        rows, _ = suite(pair, settings.disturbances, path, claims, here.run.tell)
        return {"stressed": rows, "stress_steps": settle(path, claims)}  # also what a killed call had settled

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
) -> tuple[list[Stressed], int]:
    """The undisturbed row and those of the named disturbances (all for none), in their order; rows in `path` that were
    made from the same policies are not played again. Then the environment steps that were played, now or before a
    kill, and are on no bill: `settle` says that they are."""
    wanted = cases(check(names), pair.task, lambda name, why: tell("stress", f"{name}: left out, {why}"))
    known = read_rows(path, claims) or Kept()
    if known.base is None:
        known.base = ground(pair)
        _write(path, claims, known)
    _tell(tell, known.base.row)
    for case in wanted:
        if known.lacks(case, pair.task.spec):
            (row,) = stressed(pair, known.base, [case])
            known.replaced += known.rows[case].env_steps if case in known.rows else 0
            known.rows[case] = row
            _write(path, claims, known)
        _tell(tell, known.rows[case])
    return [known.base.row, *(known.rows[case] for case in wanted)], known.steps - known.billed


def settle(path: Path, claims: Mapping[str, str]) -> int:
    """Everything that is kept in `path` is on the bill; how many environment steps that is, replaced rows included."""
    known = read_rows(path, claims) or Kept()
    known.billed = known.steps
    _write(path, claims, known)
    return known.billed


def _tell(tell: Tell, row: Stressed) -> None:
    what = "undisturbed" if row.disturbance == "none" else f"{row.disturbance} {level_of(row)}"
    tell("stress", f"{what}: teacher {row.teacher:.4g}, student {row.student:.4g}, keeps {kept(row)}")


def _write(path: Path | None, claims: Mapping[str, str], known: Kept) -> None:
    base = known.base
    if path is not None and base is not None:
        spread = {key: {"shape": np.shape(value), "values": np.ravel(value)} for key, value in base.spread.items()}
        content = {"claims": claims, "undisturbed": base.row, "random": base.random, "spread": spread}
        storage.write_json(
            path, {**content, "rows": list(known.rows.values()), "billed": known.billed, "replaced": known.replaced}
        )


def read_rows(path: Path | None, claims: Mapping[str, str]) -> Kept | None:
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
        billed, replaced = int(stored["billed"]), int(stored.get("replaced", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{printable(path)} is damaged: {printable(error)}. Remove it; it is then played again."
        ) from error
    return Kept(base, {(row.disturbance, row.level): row for row in rows[1:]}, billed, replaced)


def in_order(rows: Sequence[Stressed]) -> tuple[Stressed, ...]:
    """Undisturbed first, then as DISTURBANCES has them."""
    places = ["none", *DISTURBANCES]
    return tuple(sorted(rows, key=lambda row: (places.index(row.disturbance), row.level)))
