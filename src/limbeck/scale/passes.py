"""A pass: candidates of one method, trained as one family through the rungs; the weaker part stays behind at each.

A pass is a folder. `pass.json` says what it is before anything is trained, each rung is a run with its own checkpoints,
and `result.json` ends it; so whoever finds the folder without a holder goes on exactly where the last one was killed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import blueprints, identity, runs, storage
from limbeck.contracts import Bill
from limbeck.errors import StorageError, printable
from limbeck.reporting.reading import build
from limbeck.runs import Run
from limbeck.scale.space import Method, Space
from limbeck.settings import Recipe
from limbeck.stages import blindness, choosing, learn
from limbeck.stages.choosing import Chosen
from limbeck.stages.scene import Scene
from limbeck.students.family import Family
from limbeck.students.grammar import parse

PLAN, RESULT, LOCK = "pass.json", "result.json", "pass.lock"


@dataclass(frozen=True)
class Candidate:
    """One architecture of a pass."""

    trial: int  # number in the study
    spec: str
    size_bytes: int


@dataclass(frozen=True)
class Pass:
    """What is trained together."""

    number: int
    method: Method
    candidates: tuple[Candidate, ...]
    refused: tuple[int, ...] = ()  # trials that the budget of latency ruled out before training


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate."""

    trial: int
    spec: str
    size_bytes: int  # of the trained student
    mean_return: float
    rung: int  # the last one it was trained at
    full: bool  # at the highest fidelity: only these can be on the front
    polished: bool = False


@dataclass(frozen=True)
class Finished:
    """A pass that ended, and its bill."""

    number: int
    method: Method
    outcomes: tuple[Outcome, ...]
    bill: Bill


def folder_of(folder: Path, number: int) -> Path:
    return folder / "passes" / f"{number:04d}"


def plans(folder: Path) -> list[Pass]:
    """All passes that were begun, in order."""
    return [read_back(Pass, path) for path in sorted((folder / "passes").glob(f"*/{PLAN}"))]


def finished(folder: Path) -> list[Finished]:
    """All passes that ended, in order."""
    return [read_back(Finished, path) for path in sorted((folder / "passes").glob(f"[0-9]*/{RESULT}"))]


def read_back(kind: Any, path: Path, key: str | None = None) -> Any:
    """A file of the search, or what it holds under `key`, as the type it was written from."""
    table = storage.read_table(path)
    try:
        return build(kind, table if key is None else table.get(key), path.stem)
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{printable(path)} is damaged: {printable(error)}. Restore it from a copy, or choose another --out."
        ) from error


def train(here: Scene, space: Space, plan: Pass, folder: Path) -> Finished:
    """All rungs of a pass; `here` is the search's scene. Writes result.json, then gives back what only training needs."""
    place, rungs, alive = folder_of(folder, plan.number), space.settings.rungs, list(plan.candidates)
    outcomes: dict[int, Outcome] = {}
    bill = Bill()
    for rung, rounds in enumerate(rungs):
        last = rung == len(rungs) - 1
        one = _rung(here, space, plan, alive, place / f"rung-{rung}", rounds)
        family, cost = _imitated(one)
        bill = _sum(bill, cost)
        returns, cost = _scores(one, family, last)
        bill = _sum(bill, cost)
        names = [member.name for member in parse(one.run.recipe.students)]
        found = {
            c.trial: Outcome(c.trial, c.spec, _size(family, name, one), returns[name], rung, last)
            for c, name in zip(alive, names, strict=True)
        }
        if last:
            found, cost = _polished(one, space, family, dict(zip([c.trial for c in alive], names, strict=True)), found)
            bill = _sum(bill, cost)
        outcomes |= found
        best = max(o.mean_return for o in found.values())
        here.run.tell(
            "search",
            f"pass {plan.number + 1}, rung {rung + 1} of {len(rungs)}: {len(alive)} candidates, {rounds} rounds, best return {best:.4g}",
        )
        if not last:
            going = set(promising([found[c.trial] for c in alive], space.settings.keep))
            alive = [c for c in alive if c.trial in going]
    result = Finished(plan.number, plan.method, tuple(outcomes[c.trial] for c in plan.candidates), bill)
    storage.write_json(place / RESULT, result)
    tidy(place)
    return result


def tidy(place: Path) -> None:
    """Remove what only training needs, and what is large: played rows and checkpoints."""
    for name in ("dataset", "checkpoints"):
        for folder in place.glob(f"rung-*/{name}"):
            shutil.rmtree(folder)


def promising(found: Sequence[Outcome], keep: float) -> list[int]:
    """Trials that go on: whole fronts over (bytes, return) one after another, the better returns first within one.

    >>> a, b, c = (Outcome(n, "linear", size, r, 0, False) for n, (size, r) in enumerate([(40, 9.0), (80, 9.5), (80, 5.0)]))
    >>> promising([a, b, c], 0.5)
    [1, 0]
    """
    left, ranked = list(found), []
    while left:
        front = non_dominated(left)
        ranked += sorted(front, key=lambda o: (-o.mean_return, o.size_bytes, o.trial))
        left = [o for o in left if o not in front]
    return [o.trial for o in ranked[: max(1, math.ceil(keep * len(ranked)))]]


def non_dominated(found: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other equals or beats in bytes and in return while beating it in one; of equals the first."""
    best: list[Outcome] = []
    for one in sorted(found, key=lambda o: (o.size_bytes, -o.mean_return, o.trial)):
        if not best or one.mean_return > best[-1].mean_return:
            best.append(one)
    return best


# ---------------------------------------------------------------- one rung


def _rung(here: Scene, space: Space, plan: Pass, alive: Sequence[Candidate], place: Path, rounds: int) -> Scene:
    recipe = space.run_for(plan.method, [c.spec for c in alive], rounds)
    return replace(here, run=runs.open_run(place, recipe, _quiet(here.run), identity.of_task(here.task)))


def _quiet(run: Run) -> runs.Tell:
    """Of a run within the search only what is out of order is told."""

    def tell(stage: str, text: str) -> None:
        if stage == "run":
            run.tell(stage, text)

    return tell


def _imitated(one: Scene) -> tuple[Family, Bill]:
    family, done = learn.imitate_rounds(one)
    records = [storage.read_json(path) for path in sorted((one.run.folder / "records").glob("*.json"))]
    return family, Bill(
        collection_steps=done.collection_steps, race_steps=done.race_steps, teacher_queries=done.teacher_queries,
        gradient_steps=done.gradient_steps, seconds=done.seconds, critic_fits=done.critic_fits,
        critic_steps=sum(record.get("critic_steps", 0) for record in records),
    )  # fmt: skip


def _scores(one: Scene, family: Family, last: bool) -> tuple[Mapping[str, float], Bill]:
    """Mean return of every candidate: a short race below the last rung, the seeds for choosing at it."""
    race: Any = one.run.recipe.race
    stage, episodes = ("select", race.final_episodes) if last else ("race", race.episodes)

    def compute() -> dict[str, Any]:
        scores, steps = choosing.scored(one, family, stage, 0, episodes)
        return {"scores": scores, "env_steps": steps}

    record = one.run.record("scores", compute)
    return record["scores"], Bill(race_steps=record["env_steps"], seconds=record["seconds"])


def _size(family: Family, name: str, one: Scene) -> int:
    return blueprints.stored_bytes(blueprints.fold(family.blueprint(name, one.task.name)))


def _polished(
    one: Scene, space: Space, family: Family, names: Mapping[int, str], found: Mapping[int, Outcome]
) -> tuple[dict[int, Outcome], Bill]:
    """The pass's own front polished on return where it falls short, scored again, and every student saved."""
    recipe, front = one.run.recipe, non_dominated(list(found.values()))
    members = {member.name: member for member in family.members}
    chosen = [
        Chosen(members[names[o.trial]], family.blueprint(names[o.trial], one.task.name), o.mean_return) for o in front
    ]
    blindness.measured(one, chosen)  # a record, for the notes of the final report: it needs the data set
    improved, cost = choosing.polish(one, family, chosen)

    def compute() -> dict[str, Any]:
        scores, steps = {}, 0
        for mine in improved:
            if mine.polished:
                alone = _alone(family, mine.member.name)
                every, taken = choosing.scored(one, alone, "select", 0, recipe.race.final_episodes)
                scores[mine.member.name], steps = every[mine.member.name], steps + taken
        return {"scores": scores, "env_steps": steps}

    again = one.run.record("polished", compute)
    outcomes = {
        trial: replace(
            o, mean_return=again["scores"].get(names[trial], o.mean_return), polished=names[trial] in again["scores"]
        )
        for trial, o in found.items()
    }
    for trial, name in names.items():
        provenance = {
            "teacher_sha256": one.teacher.info.sha256, "task": one.task.name, "run_seed": one.seed,
            "spec": found[trial].spec, "polished": outcomes[trial].polished,
        }  # fmt: skip
        blueprints.save(
            blueprints.fold(family.blueprint(name, one.task.name)),
            student_file(one.run.folder.parent, trial),
            provenance,
        )
    bill = Bill(polish_steps=cost.env_steps, race_steps=again["env_steps"], seconds=cost.seconds + again["seconds"])
    return outcomes, bill


def _alone(family: Family, name: str) -> Family:
    """A family of one member; the given one keeps all of its own."""
    one = Family(family.ports, family.normalisers, [replace(rows) for rows in family.stacks])
    one.keep([name])
    return one


def student_file(place: Path, trial: int) -> Path:
    """Where a candidate of the highest fidelity is kept, below its pass."""
    return place / "students" / f"{trial:05d}.safetensors"


def _sum(one: Bill, other: Bill) -> Bill:
    """Both bills together; the larger peak of memory."""
    plain = {key: value + getattr(other, key) for key, value in vars(one).items() if key != "peak_memory_bytes"}
    return Bill(**plain, peak_memory_bytes=max(one.peak_memory_bytes, other.peak_memory_bytes))


def total(bills: Sequence[Bill]) -> Bill:
    """The bill of all passes."""
    whole = Bill()
    for bill in bills:
        whole = _sum(whole, bill)
    return whole


def steps_expected(here: Scene, plan: Pass, rungs: Sequence[int], keep: float) -> int:
    """Environment steps of a pass by its plan, its students' episodes taken as long as the teacher's; polish apart."""
    return steps_of(here.run.recipe, len(plan.candidates), here.teacher_steps, rungs, keep)


def steps_of(recipe: Recipe, members: int, episode_steps: float, rungs: Sequence[int], keep: float) -> int:
    """The same of so many candidates with episodes of a given length; of length 1 the least that a pass can take."""
    steps = 0.0
    for rung, rounds in enumerate(rungs):
        episodes = recipe.race.final_episodes if rung == len(rungs) - 1 else recipe.race.episodes
        steps += rounds * recipe.collect.steps + members * episodes * episode_steps
        members = max(1, math.ceil(keep * members))
    return int(np.ceil(steps))
