"""The result of a search: its front, and the proof of those members that are within reach of the claim.

The front is chosen on seeds for choosing. Its members are proved as any family is: each artefact plays, on the proof's
own seeds that no pass has played, largest to smallest, each at full alpha, until the first that is not proved. The
order is fixed before the first proof episode, so the probability that any statement is wrong is at most alpha.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limbeck import blueprints, identity, reporting, runs, storage
from limbeck.contracts import Bill, RunResult
from limbeck.runs import Run
from limbeck.scale import passes, study
from limbeck.scale.passes import Finished
from limbeck.scale.space import Method
from limbeck.scale.study import Study
from limbeck.stages import proving, ship, stressing
from limbeck.stages.choosing import Chosen, Cost
from limbeck.stages.scene import Progress, Scene
from limbeck.students.grammar import MemberSpec, parse

REACH = 0.9  # of the share to prove: a member whose estimate is below it is not worth a proof


@dataclass(frozen=True)
class FrontRow:
    """One member of the front."""

    name: str  # of the member in final/, where it is proved
    trial: int
    spec: str
    method: Method
    size_bytes: int  # of its weights
    mean_return: float  # on the seeds for choosing
    retention: float  # estimate from it; never a claim
    polished: bool
    verdict: str = ""  # "" where it was not tested


@dataclass(frozen=True)
class SearchResult:
    """Everything a finished search tells."""

    task: str
    sampler: str
    trained: int  # candidates
    full: int  # of them at the highest fidelity
    refused: int  # ruled out before training
    failed: int
    front: Sequence[FrontRow]  # largest first
    bill: Bill  # of all passes and processes, and of the proofs
    final: RunResult  # the proved members; their folder is final/


def front_of(here: Scene, ended: Sequence[Finished], most: int | None) -> list[FrontRow]:
    """The non-dominated of all candidates of the highest fidelity, largest first."""
    methods = {o.trial: f.method for f in ended for o in f.outcomes}
    able = [o for f in ended for o in f.outcomes if o.full and (most is None or o.size_bytes <= most)]
    return [
        FrontRow(
            _name(o),
            o.trial,
            o.spec,
            methods[o.trial],
            o.size_bytes,
            o.mean_return,
            here.retention(o.mean_return),
            o.polished,
        )
        for o in reversed(passes.non_dominated(able))
    ]


def _name(outcome: passes.Outcome) -> str:
    """Unique in the search: two members of one front may share an architecture and differ in the frames they see."""
    return f"{outcome.spec.replace(':', '-')}-t{outcome.trial}"


def prove(here: Study, command: str) -> SearchResult:
    """final/: the front's members saved, exported, proved, told. Stopped anywhere, the same call continues."""
    ended = passes.finished(here.folder)
    rows = front_of(here.here, ended, here.space.settings.max_bytes)
    retain = here.here.run.recipe.prove.retain
    tested = [row for row in rows if row.retention >= REACH * retain] or rows[:1]
    folder = here.folder / study.FINAL
    with storage.locked(folder):
        one = _final_scene(here, folder, tested)
        _copy_records(here, one.run, ended, tested)
        chosen = ship.save_students(one, [_chosen(here, ended, row) for row in tested])
        artifacts = ship.export(one, chosen)
        proofs = proving.prove(one, chosen, artifacts)
        bill = passes.total([f.bill for f in ended])
        one.run.record("passes", lambda: {"critic_steps": bill.critic_steps})
        done, choice, polished = _as_one_run(here, bill)
        stressed = stressing.stress(one, chosen, artifacts, proofs)
        ship.conclude(one, chosen, artifacts, proofs, done, choice, polished, stressed)
        final = reporting.load_result(folder)
        if final.command != command:  # one recipe does not say how a front was found
            storage.write_json(folder / runs.RESULT, replace(final, command=command))
        ship.present(one)
    final = reporting.load_result(folder)
    verdicts = {m.name: m.proof.verdict for m in final.members if m.proof is not None}
    result = _result(here, [replace(row, verdict=verdicts.get(row.name, "")) for row in rows], final)
    storage.write_json(here.folder / study.FRONT, {k: v for k, v in storage.plain(result).items() if k != "final"})
    return result


def told_again(here: Study) -> SearchResult:
    """The result of a finished search."""
    final = reporting.load_result(here.folder / study.FINAL)
    rows = passes.read_back(tuple[FrontRow, ...], here.folder / study.FRONT, "front")
    return _result(here, rows, final)


def _result(here: Study, rows: Sequence[FrontRow], final: RunResult) -> SearchResult:
    ended = passes.finished(here.folder)
    outcomes = [o for f in ended for o in f.outcomes]
    plans = passes.plans(here.folder)
    failed = sum(len(p.candidates) for p in plans) - len(outcomes)
    return SearchResult(
        here.here.task.name, here.space.settings.sampler, len(outcomes), sum(o.full for o in outcomes),
        sum(len(p.refused) for p in plans), failed, rows, final.bill, final,
    )  # fmt: skip


# ---------------------------------------------------------------- the final run


def _final_scene(here: Study, folder: Path, rows: Sequence[FrontRow]) -> Scene:
    recipe = replace(here.space.recipe, students=tuple(row.spec for row in rows))
    run = runs.open_run(folder, recipe, here.here.run.tell, identity.of_task(here.here.task))
    return replace(here.here, run=run)


def _chosen(here: Study, ended: Sequence[Finished], row: FrontRow) -> Chosen:
    place = passes.folder_of(here.folder, _pass_of(ended, row))
    blueprint, _ = blueprints.load(passes.student_file(place, row.trial))
    architecture = parse([row.spec])[0].architecture
    return Chosen(MemberSpec(row.name, architecture, 0), blueprint, row.mean_return, row.polished)


def _pass_of(ended: Sequence[Finished], row: FrontRow) -> int:
    return next(f.number for f in ended for o in f.outcomes if o.trial == row.trial)


def _copy_records(here: Study, run: Run, ended: Sequence[Finished], rows: Sequence[FrontRow]) -> None:
    """What students cannot know was measured where their data set was: in the last rung of their pass."""
    last = f"rung-{len(here.space.settings.rungs) - 1}"
    for row in rows:
        records = passes.folder_of(here.folder, _pass_of(ended, row)) / last / "records"
        for path in sorted(records.glob("blindness-*.json")):
            target = run.folder / "records" / path.name
            if not target.exists():
                storage.write_json(target, storage.read_json(path))


def _as_one_run(here: Study, bill: Bill) -> tuple[Progress, Mapping[str, int], Cost]:
    """The whole search's costs in the terms of a run, so that the final report's bill is the search's."""
    verified = float(storage.read_json(here.folder / study.TEACHER / "records" / "verify.json")["seconds"])
    done = Progress(
        collection_steps=bill.collection_steps, teacher_queries=bill.teacher_queries,
        gradient_steps=bill.gradient_steps, seconds=bill.seconds + verified, critic_fits=bill.critic_fits,
    )  # fmt: skip
    return done, {"race_steps": bill.race_steps}, Cost(bill.polish_steps, 0.0)


def command_of(words: Sequence[str]) -> str:
    """What to type to get this search again."""
    return f"limbeck search {' '.join(shlex.quote(word) for word in words)} --out NEW_FOLDER"
