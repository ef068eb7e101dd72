"""The verdicts of a family: each artefact plays for itself, largest to smallest; what cannot be proved is measured.

What `compress` made does not wait for the others: each of its members is proved, whatever became of the ones before,
and all of them share the family's error probability (`proof.sharing`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import exporters, proof, seeding, spaces, storage
from limbeck.contracts import (
    NO_ENVIRONMENT,
    NO_PLAYER,
    Artifact,
    Blueprint,
    Bounds,
    Latency,
    Policy,
    Proof,
    Task,
    confidence,
)
from limbeck.errors import StorageError, printable
from limbeck.proof import Measured, ReturnCache
from limbeck.reporting.reading import build
from limbeck.runtimes.compiled_c import CPolicy
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.shadow import Shadowed
from limbeck.settings import ProveSettings
from limbeck.stages import critics
from limbeck.stages.choosing import Chosen
from limbeck.stages.scene import Scene
from limbeck.tasks import RecordedTask
from limbeck.teachers.demonstrations import DemonstratedPolicy

SHARED = "shares_alpha"  # in the record of the bounds, where the sequences of the family share alpha
TOLD_EVERY = 256  # episodes of a proof between two lines of progress
HELD_OUT = 100  # episodes on which a student is measured where nothing can be proved
FIDELITY_EPISODES = 8  # of the student itself, on which it is held against its teacher
FIDELITY_ROWS = 256  # the same of a labelled set, whose episodes are one row each


# ---------------------------------------------------------------- proof


@dataclass(frozen=True)
class Fixed:
    """What is fixed before the first proof of a run."""

    bounds: Bounds
    env_steps: int  # that fixing the bounds took
    shares_alpha: bool = False  # False: one sequence alone, or a run that was begun with alpha for each


@dataclass(frozen=True)
class Proved:
    """The verdicts of a family and what they cost."""

    proofs: Mapping[str, Proof]
    latency: Mapping[str, Mapping[str, Latency]]
    notes: Mapping[str, Mapping[str, str]]  # member -> target -> whose verdict it carries
    proof_steps: int
    bound_steps: int
    family: float | None = None  # bound of the probability that one or more claims are false; None: nothing was tested


def prove(here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]]) -> Proved:
    """All sequences of the family, each member at its level, until the first of each that is not proved; the artefact
    takes the actions."""
    run, settings = here.run, here.run.recipe.prove
    if (why := unprovable(here)) is not None:
        return _measured(here, chosen, artifacts, why)

    lines = sequences(chosen)

    def fix() -> dict[str, Any]:
        run.tell("prove", "fixing floor and ceiling: verification's episodes, and random ones on seeds of their own")
        bounds, steps = proof.bounds_for(here.task, here.evaluations, settings, here.seed, here.mode)
        return {"bounds": bounds, "env_steps": steps, **({SHARED: True} if len(lines) > 1 else {})}

    run.record("bounds", fix)
    fixed = read_fixed(run.folder)
    sharing = sharing_of(fixed, {one.member.name: one.lineage for one in chosen}, settings.alpha)
    run.tell("prove", f"returns lie in [{fixed.bounds.floor:.4g}, {fixed.bounds.ceiling:.4g}]: {fixed.bounds.source}")
    if (most := here.task.proof_episodes) is not None and most < settings.max_episodes:
        run.tell("prove", f"{here.task.name} has {most:,} test rows: no proof is longer, since a row counts once")
    proofs: dict[str, Proof] = {}
    notes: dict[str, dict[str, str]] = {}
    latencies: dict[str, Mapping[str, Latency]] = {}
    steps = 0
    if len(lines) > 1:
        run.tell("prove", sharing.words())
    for line in lines:
        for one in line:
            name = one.member.name
            if level := sharing.level(name, lambda before: before in proofs and proofs[before].verdict == "proved"):
                asked = replace(settings, alpha=level)
                record = _tested(here, one, artifacts[name], fixed.bounds, asked)
                proofs[name], notes[name] = build(Proof, record["proof"], "proof"), dict(record["notes"])
                steps += record["env_steps"]
            else:
                run.tell("prove", f"{name}: not tested, the sequence stops at the first member that is not proved")
            latencies[name] = _latencies(here, one, artifacts[name])
    return Proved(proofs, latencies, notes, steps, fixed.env_steps, sharing.family)


def _tested(
    here: Scene, one: Chosen, artifacts: Sequence[Artifact], bounds: Bounds, settings: ProveSettings
) -> dict[str, Any]:
    """The record of one member's test, told and kept in files of its own."""
    name = one.member.name
    record = here.run.record(f"prove-{name}", partial(_prove_one, here, one, artifacts, bounds, settings))
    found = build(Proof, record["proof"], "proof")
    _tell_verdict(here, found)
    _write_once(here.run.folder / "proofs" / f"{name}.json", found)
    for target, own in record.get("others", {}).items():
        _write_once(here.run.folder / "proofs" / f"{name}.{target}.json", build(Proof, own, "proof"))
    return record


def _latencies(here: Scene, one: Chosen, artifacts: Sequence[Artifact]) -> dict[str, Latency]:
    """What a step takes, by target."""
    timed = here.run.record(f"latency-{one.member.name}", partial(_latency, one, artifacts))
    return {k: build(Latency, v, "latency") for k, v in timed["latency"].items()}


def sequences(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """What is tested one after the other: the plain members as they come, and each compressed one alone, by lineage."""
    known = {one.member.name: one for one in chosen}
    lines = proof.sequences({name: one.lineage for name, one in known.items()})
    return [[known[name] for name in line] for line in lines]


def read_fixed(run: Path) -> Fixed:
    """What a run fixed before its first proof, as its record keeps it."""
    path = run / "records" / "bounds.json"
    try:
        found: Fixed = build(Fixed, storage.read_table(path), path.stem)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{printable(path)} is damaged: {printable(error)}. Restore it from a copy.") from error
    return found


def sharing_of(fixed: Fixed, lineages: Mapping[str, Sequence[str]], alpha: float) -> proof.Sharing:
    """How a run's members share alpha. A run whose bounds were fixed before levels were shared goes on as it was begun:
    its proofs that are there already had alpha each."""
    lines = proof.sequences(lineages)
    return proof.Sharing(lines, alpha, len(lines) == 1 or fixed.shares_alpha)


def unprovable(here: Scene) -> Measured | None:
    """Why nothing can be proved here, None where it can."""
    if isinstance(here.task, RecordedTask):
        return Measured(NO_ENVIRONMENT)
    if isinstance(here.teacher.policy, DemonstratedPolicy):
        return Measured(NO_PLAYER, here.teacher.policy.records.returns.tolist())
    return None


def _measured(
    here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]], why: Measured
) -> Proved:
    """Every member's returns on held-out episodes, "not proved"; each target still says whether it acts alike."""
    run, recipe = here.run, here.run.recipe
    count = min(here.task.proof_episodes or HELD_OUT, HELD_OUT)
    seeds = [seeding.episode_seed(here.seed, "proof", i) for i in range(count)]
    bounds = here.task.bounds or Bounds(-math.inf, math.inf, "none: nothing is proved")
    proofs: dict[str, Proof] = {}
    notes: dict[str, dict[str, str]] = {}
    latencies: dict[str, Mapping[str, Latency]] = {}
    for one in chosen:
        name = one.member.name

        def compute(one: Chosen = one, name: str = name) -> dict[str, Any]:
            (played_by, main), *others = players(one.blueprint, artifacts[name]).items()
            shadowed = Shadowed(main, dict(others))
            found = proof.measure(
                shadowed, here.teacher.policy, here.task, why, seeds, bounds, recipe.prove, member=name, played_by=played_by, run_seed=here.seed,
            )  # fmt: skip
            if why.teacher_returns is None:
                fidelity, _ = critics.watched(here, main, seeds)
                found = replace(found, fidelity=fidelity.values, sources=fidelity.sources)
            told = {played_by: "not proved"}
            for target, _ in others:
                different = shadowed.different[target]
                told[target] = f"acted differently in {different} rows" if different else shadowed.agreed()
            return {"proof": found, "notes": told, "env_steps": found.env_steps}

        record = run.record(f"prove-{name}", compute)
        proofs[name], notes[name] = build(Proof, record["proof"], "proof"), dict(record["notes"])
        run.tell("prove", f"{name}: not proved: {proofs[name].reason}")
        _write_once(run.folder / "proofs" / f"{name}.json", proofs[name])
        latencies[name] = _latencies(here, one, artifacts[name])
    return Proved(proofs, latencies, notes, sum(p.env_steps for p in proofs.values()), 0)


def _write_once(path: Path, found: Proof) -> None:
    """A proof that `limbeck prove` went on with is not put back to where the run left it."""
    if not path.exists():
        storage.write_json(path, found)


def players(blueprint: Blueprint, artifacts: Sequence[Artifact]) -> dict[str, Policy]:
    """Every artefact that runs here, best player first; numpy where no compiler made the C run."""
    able: dict[str, Policy] = {}
    for artifact in sorted(artifacts, key=lambda a: a.target != "c"):
        if artifact.compiled:
            able[artifact.target] = exporters.load(artifact.folder.parent, artifact.target)
    return able if "c" in able else {"numpy": NumpyPolicy(blueprint), **able}


def _prove_one(
    here: Scene, one: Chosen, artifacts: Sequence[Artifact], bounds: Bounds, settings: ProveSettings
) -> dict[str, Any]:
    """One member's verdict, and for every other target whether it shares it or earned its own."""
    able = players(one.blueprint, artifacts)
    (played_by, main), *others = able.items()
    cache = ReturnCache(here.run.folder / "proofs" / "returns.json", str(here.run.recipe.teacher_sha256))
    shadowed = Shadowed(main, dict(others))
    claim = _Claim(one.member.name, bounds, settings, cache)
    found = _prove_policy(here, claim, shadowed, played_by)
    notes, steps = {played_by: "played the proof"}, found.env_steps
    proofs: dict[str, Proof] = {}
    for target, policy in others:
        if not shadowed.different[target]:
            notes[target] = shadowed.agreed()
            continue
        proofs[target] = own = _prove_policy(here, claim, policy, target)
        steps += own.env_steps
        notes[target] = (
            f"{own.verdict}, its own proof over {own.episodes} episodes: it acted differently in {shadowed.different[target]} rows"
        )
    fidelity, erred = critics.watched(here, main, fidelity_seeds(here.task, here.seed))
    return {
        "proof": replace(found, fidelity=fidelity.values, sources=fidelity.sources),
        **erred,
        "others": proofs,
        "notes": notes,
        "env_steps": steps + fidelity.env_steps,
    }


def fidelity_seeds(task: Task, run_seed: int) -> list[int]:
    """Seeds of the episodes on which a student is held against its teacher."""
    count = FIDELITY_EPISODES if task.proof_episodes is None else FIDELITY_ROWS
    return [seeding.episode_seed(run_seed, "fidelity", i) for i in range(count)]


@dataclass(frozen=True)
class _Claim:
    """What is to be proved of a member, whichever of its files plays."""

    member: str
    bounds: Bounds
    settings: ProveSettings  # alpha: the member's level
    cache: ReturnCache


def _prove_policy(here: Scene, claim: _Claim, policy: Policy, played_by: str) -> Proof:
    """The e-process of one policy against the run's teacher; a long one says now and then how far it is."""

    def look(episodes: int, log_wealth: float) -> None:
        if episodes % TOLD_EVERY == 0:
            here.run.tell("prove", f"{claim.member}: {episodes} episodes, e-value {math.exp(log_wealth):.3g}")

    return proof.prove(
        policy, here.teacher.policy, here.task, member=claim.member, played_by=played_by, bounds=claim.bounds,
        settings=claim.settings, run_seed=here.seed, teacher_mode=here.mode, cache=claim.cache, on_look=look,
    )  # fmt: skip


def _tell_verdict(here: Scene, found: Proof) -> None:
    claim = f"{proof.claim_of(found.retain)}, {confidence(found.alpha)} confidence"
    text = claim if found.verdict == "proved" else f"{found.verdict}: {found.reason}"
    here.run.tell(
        "prove",
        f"{found.member}: {text}, {found.episodes} episodes, about {100 * found.retention:.1f} %, played by {found.played_by}",
    )


def _latency(one: Chosen, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    able = {**players(one.blueprint, artifacts), "numpy": NumpyPolicy(one.blueprint)}
    return {"latency": {target: _timed(policy, one) for target, policy in able.items()}}


def _timed(policy: Policy, one: Chosen) -> Latency:
    """One step at batch 1: the artefact's own fast path where it has one, else a call of the policy."""
    if isinstance(policy, CPolicy):
        obs = np.zeros(spaces.input_size(one.blueprint.spec.observation_space, one.blueprint.view), np.float32)
        return proof.latency_of(lambda: policy.step(obs))
    return proof.latency(policy)
