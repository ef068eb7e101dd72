"""Prove, and go on proving: the same claim continues with new seeds, a claim of a run is told by the run."""

from __future__ import annotations

import glob
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from limbeck import proof, reporting, seeding, storage
from limbeck.contracts import Proof
from limbeck.errors import StorageError, printable
from limbeck.reporting.reading import build
from limbeck.runs import RESULT, Tell
from limbeck.stages import critics, proving
from limbeck.standalone.duels import PROOF, Asked, Duel, from_files, from_run

PILOT_EPISODES = 32
PILOT_BEGIN = 1 << 26  # the first half of the stream's seeds is where members were chosen
ALONE = "; it stands alone, outside the run's sequence of tests"


def prove(
    student: str, teacher: str | None, env: str | None, asked: Asked, plan: bool, tell: Tell
) -> Proof | dict[str, Any]:
    """`limbeck prove`: continues the stored proof of the same claim with new seeds, or says what one would cost."""
    if teacher is not None and not plan:
        storage.probe_writable((asked.out or PROOF).parent)  # before the teacher is played
    duel = from_run(student, env, asked) if teacher is None else from_files(student, teacher, env, asked, tell)
    if duel.told:
        tell("prove", duel.told)
    if plan:
        return _plan(duel)
    with _held(duel):
        previous = _stored(duel, tell)
        found, steps = _played(duel, previous)
        if duel.own:
            storage.write_json(duel.path, found)
        else:
            storage.write_json(duel.path, {"proof": found, "claims": duel.claims})
        if duel.run is not None:
            _tell_run(duel, found, steps)
    return found


def _held(duel: Duel) -> AbstractContextManager[None]:
    """The run that the member belongs to, or this proof alone: other runs may be under way below the same folder."""
    if duel.run is not None:
        return storage.locked(duel.run)
    orphans = f".{glob.escape(duel.path.stem)}*{storage.ASIDE}"
    return storage.locked(duel.path.parent, f".{duel.path.name}.lock", orphans)


def _played(duel: Duel, previous: Proof | None) -> tuple[Proof, int]:
    """The proof, and the environment steps that it took beyond those of the previous one."""
    found = proof.prove(
        duel.student, duel.teacher.policy, duel.task, member=duel.member, played_by=duel.played_by, bounds=duel.bounds,
        settings=duel.settings, run_seed=duel.seed, teacher_mode=duel.mode,
        cache=proof.ReturnCache(duel.returns, duel.claims["teacher"]), previous=previous,
    )  # fmt: skip
    steps, fidelity = found.env_steps - (previous.env_steps if previous is not None else 0), {}
    sources = {} if previous is None else dict(previous.sources)
    if previous is not None:
        fidelity = dict(previous.fidelity)
    elif duel.own:
        seeds = proving.fidelity_seeds(duel.task, duel.seed)
        seen = critics.named(duel.teacher, proof.fidelity(duel.student, duel.teacher.policy, duel.task, seeds))
        fidelity, sources, steps = dict(seen.values), dict(seen.sources), steps + seen.env_steps
    alone = duel.run is not None and not duel.own
    played = f"; played by {duel.file}" if duel.file else ""
    return replace(found, fidelity=fidelity, sources=sources, reason=found.reason + played + ALONE * alone), steps


def _stored(duel: Duel, tell: Tell) -> Proof | None:
    """The proof to continue: of the same policies, task and stream; another's file is refused, never overwritten."""
    previous = _read(duel)
    if previous is not None:
        tell("prove", f"continuing after {previous.episodes} episodes")
    return previous


def _read(duel: Duel) -> Proof | None:
    if duel.path.exists():
        return _build(duel, storage.read_json(duel.path))
    if duel.run is None:
        return None
    first = duel.run / "proofs" / f"{duel.member}.json"  # the run's own, whose episodes count for every claim, wherever
    if not first.exists():
        return None
    previous: Proof = build(Proof, storage.read_json(first), "proof")
    began = seeding.episode_seed(duel.seed, "proof", 0)
    return previous if previous.seeds[:1] == (began,) else None  # another seed begins anew


def _build(duel: Duel, stored: Any) -> Proof:
    try:
        claims = duel.claims if duel.own else stored["claims"]
        previous: Proof = build(Proof, stored if duel.own else stored["proof"], "proof")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{printable(duel.path)} holds no proof that can be continued: {printable(error)}. Choose another --out."
        ) from error
    if claims != dict(duel.claims):
        raise StorageError(
            f"{printable(duel.path)} holds the proof of other policies, or of one whose answers vary. Choose another --out."
        )
    return previous


def _tell_run(duel: Duel, found: Proof, steps: int) -> None:
    """The run's own claim replaces its verdict in result.json; any other becomes a note beside it. Both are on the bill."""
    assert duel.run is not None
    result = reporting.load_result(duel.run)
    members, notes = list(result.members), list(result.notes)
    bill = replace(result.bill, proof_steps=result.bill.proof_steps + steps)
    if duel.own:
        tails = proof.tails_of(found, duel.seed)
        members = [replace(m, proof=found, tails=tails) if m.name == duel.member else m for m in members]
    else:
        claim = f"{found.member} {_asked(found.retain)} at alpha {found.alpha:g}, seed {duel.seed}"
        notes = [note for note in notes if not note.startswith(f"{claim}: ")]
        notes.append(f"{claim}: {found.verdict}, {found.reason}")
    family = result.family if duel.sharing is None else duel.sharing.family
    storage.write_json(duel.run / RESULT, replace(result, members=members, notes=notes, bill=bill, family=family))
    reporting.write(duel.run)
    storage.write_manifest(duel.run)


def _asked(retain: float) -> str:
    """What a member was held to, in the notes of a run.

    >>> _asked(0.5), _asked(1.0)
    ('against 50 %', 'asked whether it is better than the teacher')
    """
    return f"against {100 * retain:g} %" if retain < 1 else f"asked whether it {proof.claim_of(retain)}"


def _plan(duel: Duel) -> dict[str, Any]:
    """Episodes to expect, from a pilot on seeds that neither chose the member nor belong to the proof."""
    seeds = [seeding.episode_seed(duel.seed, "select", PILOT_BEGIN + i) for i in range(PILOT_EPISODES)]
    return dict(
        proof.plan(
            duel.student, duel.teacher.policy, duel.task, duel.bounds, duel.settings, seeds, duel.mode, duel.seed
        )
    )
