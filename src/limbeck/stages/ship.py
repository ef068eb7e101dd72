"""From chosen students to what ships: saved, exported, proved by the artefact itself, measured, reported."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import blueprints, exporters, machine, proof, reporting, runs, seeding, spaces, storage
from limbeck.contracts import (
    Artifact,
    Bill,
    Blueprint,
    Bounds,
    Latency,
    MemberReport,
    Policy,
    Proof,
    RunResult,
    Task,
    View,
)
from limbeck.exporters import golden
from limbeck.proof import ReturnCache
from limbeck.reporting.reading import build
from limbeck.runtimes.compiled_c import CPolicy
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.shadow import Shadowed
from limbeck.stages.learn import Chosen, Cost, Progress, Scene

TOLD_EVERY = 256  # episodes of a proof between two lines of progress
FIDELITY_EPISODES = 8  # of the student itself, on which it is held against its teacher


def save_students(here: Scene, chosen: Sequence[Chosen]) -> list[Chosen]:
    """Fold the normaliser in, write students/<name>/policy.safetensors, and go on with exactly what was written."""
    saved = []
    for one in chosen:
        path = here.run.folder / "students" / one.member.name / "policy.safetensors"
        provenance = {
            "teacher_sha256": here.teacher.info.sha256,
            "task": here.task.name,
            "run_seed": here.seed,
            "spec": one.member.architecture.spec,
            "polished": one.polished,
        }
        blueprints.save(blueprints.fold(one.blueprint), path, provenance)
        saved.append(replace(one, blueprint=blueprints.load(path)[0]))
    return saved


# ---------------------------------------------------------------- export


def export(here: Scene, chosen: Sequence[Chosen]) -> dict[str, list[Artifact]]:
    """artifacts/<member>/ for every member and target, checked against golden sequences of its own states."""
    run, exported = here.run, {}
    for one in chosen:
        folder = run.folder / "artifacts" / one.member.name

        def compute(one: Chosen = one, folder: Path = folder) -> dict[str, Any]:
            made, steps = _exported(one.blueprint, here.task, folder, run.recipe.export.targets, here.seed, run.recipe.export.golden_steps,
                                    {"member": one.member.name, "teacher_sha256": here.teacher.info.sha256})  # fmt: skip
            return {
                "artifacts": [replace(a, folder=a.folder.relative_to(run.folder)) for a in made],
                "other_steps": steps,
            }

        found = run.record(f"export-{one.member.name}", compute)["artifacts"]
        artifacts = [build(Artifact, value, "artifact") for value in found]
        exported[one.member.name] = [replace(a, folder=run.folder / a.folder) for a in artifacts]
        sizes = ", ".join(f"{a.target} {a.size_bytes:,} bytes" for a in artifacts)
        run.tell("export", f"{one.member.name}: {sizes}")
        for artifact in artifacts:
            if not artifact.compiled:
                run.tell("export", artifact.note)
    return exported


def export_one(blueprint: Blueprint, task: Task, folder: Path, targets: Sequence[str], run_seed: int, golden_steps: int,
               meta: Mapping[str, str]) -> list[Artifact]:  # fmt: skip
    """One policy to its targets, with golden sequences from states that it visits itself."""
    return _exported(blueprint, task, folder, targets, run_seed, golden_steps, meta)[0]


def _exported(blueprint: Blueprint, task: Task, folder: Path, targets: Sequence[str], run_seed: int, golden_steps: int,
              meta: Mapping[str, str]) -> tuple[list[Artifact], int]:  # fmt: skip
    """The artefacts, and the environment steps of their golden sequences."""
    visited = golden.record(NumpyPolicy(blueprint), task, run_seed, golden_steps)
    return exporters.export(blueprint, folder, targets, visited, meta), visited.env_steps


# ---------------------------------------------------------------- proof


@dataclass(frozen=True)
class Proved:
    """The verdicts of a family and what they cost."""

    proofs: Mapping[str, Proof]
    latency: Mapping[str, Mapping[str, Latency]]
    notes: Mapping[str, Mapping[str, str]]  # member -> target -> whose verdict it carries
    proof_steps: int
    bound_steps: int


def prove(here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]]) -> Proved:
    """Largest to smallest, each at full alpha, until the first that is not proved; the artefact takes the actions."""
    run, settings = here.run, here.run.recipe.prove

    def fix() -> dict[str, Any]:
        run.tell("prove", "fixing floor and ceiling: verification's episodes, and random ones on seeds of their own")
        bounds, steps = proof.bounds_for(here.task, here.evaluations, settings, here.seed, here.mode)
        return {"bounds": bounds, "env_steps": steps}

    fixed = run.record("bounds", fix)
    bounds = build(Bounds, fixed["bounds"], "bounds")
    run.tell("prove", f"returns lie in [{bounds.floor:.1f}, {bounds.ceiling:.1f}]: {bounds.source}")
    if (most := here.task.proof_episodes) is not None and most < settings.max_episodes:
        run.tell("prove", f"{here.task.name} has {most:,} test rows: no proof is longer, since a row counts once")
    proofs: dict[str, Proof] = {}
    notes: dict[str, dict[str, str]] = {}
    latencies: dict[str, dict[str, Latency]] = {}
    steps, going = 0, True
    for one in chosen:
        name = one.member.name
        if going:
            record = run.record(f"prove-{name}", partial(_prove_one, here, one, artifacts[name], bounds))
            proofs[name], notes[name] = build(Proof, record["proof"], "proof"), dict(record["notes"])
            steps += record["env_steps"]
            going = proofs[name].verdict == "proved"
            _tell_verdict(here, proofs[name])
            _write_once(run.folder / "proofs" / f"{name}.json", proofs[name])
            for target, own in record.get("others", {}).items():
                _write_once(run.folder / "proofs" / f"{name}.{target}.json", build(Proof, own, "proof"))
        else:
            run.tell("prove", f"{name}: not tested, the sequence stops at the first member that is not proved")
        timed = run.record(f"latency-{name}", partial(_latency, one, artifacts[name]))
        latencies[name] = {k: build(Latency, v, "latency") for k, v in timed["latency"].items()}
    return Proved(proofs, latencies, notes, steps, fixed["env_steps"])


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


def _prove_one(here: Scene, one: Chosen, artifacts: Sequence[Artifact], bounds: Bounds) -> dict[str, Any]:
    """One member's verdict, and for every other target whether it shares it or earned its own."""
    able = players(one.blueprint, artifacts)
    (played_by, main), *others = able.items()
    cache = ReturnCache(here.run.folder / "proofs" / "returns.json", str(here.run.recipe.teacher_sha256))
    shadowed = Shadowed(main, dict(others))
    found = prove_policy(here, shadowed, one.member.name, played_by, bounds, cache)
    notes, steps = {played_by: "played the proof"}, found.env_steps
    proofs: dict[str, Proof] = {}
    for target, policy in others:
        if not shadowed.different[target]:
            notes[target] = shadowed.agreed()
            continue
        proofs[target] = own = prove_policy(here, policy, one.member.name, target, bounds, cache)
        steps += own.env_steps
        notes[target] = (
            f"{own.verdict}, its own proof over {own.episodes} episodes: it acted differently in {shadowed.different[target]} rows"
        )
    seeds = [seeding.episode_seed(here.seed, "fidelity", i) for i in range(FIDELITY_EPISODES)]
    fidelity = proof.fidelity(main, here.teacher.policy, here.task, seeds)
    return {
        "proof": replace(found, fidelity=fidelity.values),
        "others": proofs,
        "notes": notes,
        "env_steps": steps + fidelity.env_steps,
    }


def prove_policy(here: Scene, policy: Policy, member: str, played_by: str, bounds: Bounds, cache: ReturnCache) -> Proof:
    """The e-process of one policy against the run's teacher; a long one says now and then how far it is."""

    def look(episodes: int, log_wealth: float) -> None:
        if episodes % TOLD_EVERY == 0:
            here.run.tell("prove", f"{member}: {episodes} episodes, e-value {math.exp(log_wealth):.3g}")

    return proof.prove(
        policy, here.teacher.policy, here.task, member=member, played_by=played_by, bounds=bounds, settings=here.run.recipe.prove,
        run_seed=here.seed, teacher_mode=here.mode, cache=cache, on_look=look,
    )  # fmt: skip


def _tell_verdict(here: Scene, found: Proof) -> None:
    claim = f"keeps >= {100 * found.retain:g} % of the teacher, {100 * (1 - found.alpha):g} % confidence"
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
        obs = np.zeros(
            spaces.flat_size(one.blueprint.spec.observation_space, View(keys=one.blueprint.view.keys)), np.float32
        )
        return proof.latency_of(lambda: policy.step(obs))
    return proof.latency(policy)


# ---------------------------------------------------------------- the end


def conclude(
    here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]], proved: Proved,
    imitated: Progress, choice: Mapping[str, Any], polished: Cost,
) -> RunResult:  # fmt: skip
    """result.json: everything the report, the table and --json tell."""
    run = here.run
    _film(here, chosen, proved)
    records = [storage.read_json(path) for path in sorted((run.folder / "records").glob("*.json"))]
    bill = Bill(
        verify_steps=sum(e.env_steps for e in here.evaluations.values()) + proved.bound_steps,
        collection_steps=imitated.collection_steps,
        race_steps=imitated.race_steps + int(choice["race_steps"]),
        polish_steps=polished.env_steps,
        proof_steps=proved.proof_steps,
        teacher_queries=imitated.teacher_queries,
        gradient_steps=imitated.gradient_steps,
        seconds=imitated.seconds + polished.seconds + sum(float(record["seconds"]) for record in records),
        peak_memory_bytes=machine.peak_memory_bytes(),
        other_steps=sum(record.get("other_steps", 0) for record in records),  # only some stages have any
    )
    inside = {
        name: [replace(a, folder=a.folder.relative_to(run.folder)) for a in made] for name, made in artifacts.items()
    }
    members = [_member(one, inside[one.member.name], proved) for one in chosen]
    result = RunResult(
        here.task.name, here.teacher.info, here.evaluations, here.mode, run.recipe.prove.retain, run.recipe.prove.alpha, members, bill,
        run.identity["machine"], run.identity["versions"], f"limbeck distill {shlex.quote(str(run.folder / runs.RECIPE))} --out NEW_FOLDER",
        tuple(getattr(here.task, "notes", ())),
    )  # fmt: skip
    if not (run.folder / runs.RESULT).exists():
        storage.write_json(run.folder / runs.RESULT, result)
    return reporting.load_result(run.folder)


def _member(one: Chosen, artifacts: Sequence[Artifact], proved: Proved) -> MemberReport:
    name = one.member.name
    notes = proved.notes.get(name, {})
    shown = [replace(a, note=notes.get(a.target, a.note)) for a in artifacts]
    smallest = min((a.size_bytes for a in artifacts), default=4 * one.blueprint.parameters)
    return MemberReport(
        name, one.member.architecture.spec, one.member.seed, one.blueprint.parameters, smallest, one.blueprint.multiply_adds,
        proved.proofs.get(name), proved.latency[name], shown, one.polished,
    )  # fmt: skip


def _film(here: Scene, chosen: Sequence[Chosen], proved: Proved) -> None:
    """Video of the smallest proved student beside the teacher."""
    run = here.run
    able = [one for one in chosen if (found := proved.proofs.get(one.member.name)) and found.verdict == "proved"]
    shown = (able or list(chosen))[-1]

    def compute() -> dict[str, Any]:
        run.tell("report", f"filming the teacher and {shown.member.name} on one seed")
        seed = seeding.episode_seed(here.seed, "video", 0)
        info = reporting.side_by_side(
            here.teacher.policy, NumpyPolicy(shown.blueprint), here.task, seed, run.folder / "video.mp4", here.mode,
            student_name=shown.member.name, run_seed=here.seed,
        )  # fmt: skip
        return {"other_steps": info.teacher_steps + info.student_steps if info is not None else 0}

    run.record("video", compute)


def present(here: Scene) -> None:
    """The page and the manifest."""
    page = reporting.write(here.run.folder)
    storage.write_manifest(here.run.folder)
    here.run.tell("report", str(page))
