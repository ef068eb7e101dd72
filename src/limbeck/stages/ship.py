"""What ships: students saved and exported, then the bill, the video, the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, machine, reporting, runs, seeding, spaces, storage, tables
from limbeck.contracts import (
    Artifact,
    Bill,
    Blueprint,
    MemberReport,
    Policy,
    Range,
    Rate,
    RunResult,
    Stressed,
    Task,
    View,
)
from limbeck.dataset import open_dataset
from limbeck.exporters import golden, replaying
from limbeck.exporters.ccode.guard import GUARDED
from limbeck.reporting.reading import build
from limbeck.reporting.trackers import live
from limbeck.runtimes import emulated, firmware
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import blindness, gallery, labelled, portrait, stressing
from limbeck.stages.choosing import Chosen, Cost
from limbeck.stages.proving import Proved, unprovable
from limbeck.stages.scene import Progress, Scene
from limbeck.students import quantised
from limbeck.students.port import Port
from limbeck.students.trees import formulas
from limbeck.tasks import RecordedTask


def save_students(here: Scene, chosen: Sequence[Chosen]) -> list[Chosen]:
    """Fold the normaliser in, write students/<name>/policy.safetensors, and go on with exactly what was written."""
    saved, seen = [], _seen(here, chosen)
    for one in chosen:
        path = here.run.folder / "students" / one.member.name / "policy.safetensors"
        provenance = {
            "teacher_sha256": here.teacher.info.sha256,
            "task": here.task.name,
            "run_seed": here.seed,
            "spec": one.member.architecture.spec,
            "polished": one.polished,
            **({"lineage": list(one.lineage)} if one.lineage else {}),
        }
        blueprint = replace(blueprints.fold(one.blueprint), seen=seen.get(one.blueprint.view))
        blueprints.save(blueprint, path, provenance)
        saved.append(replace(one, blueprint=blueprints.load(path)[0]))
    return saved


def _seen(here: Scene, chosen: Sequence[Chosen]) -> dict[View, Range]:
    """What the run's data set holds under each view, for the guard of the exported C; nothing for what it does not guard."""
    data, space = open_dataset(here.run.folder / "dataset", here.task.name), here.task.spec.observation_space
    found = {}
    for one in chosen:
        view, size = one.blueprint.view, spaces.flat_size(space, one.blueprint.view)
        if size <= GUARDED and view not in found:
            port = Port(here.task.spec, view, one.blueprint.head, size * view.history)
            if (seen := tables.range_of(data, port)) is not None:
                found[view] = seen
    return found


# ---------------------------------------------------------------- export


def export(here: Scene, chosen: Sequence[Chosen]) -> dict[str, list[Artifact]]:
    """artifacts/<member>/ for every member and target, checked against golden sequences of its own states."""
    run, exported = here.run, {}
    for one in chosen:
        folder = run.folder / "artifacts" / one.member.name

        def compute(one: Chosen = one, folder: Path = folder) -> dict[str, Any]:
            made, steps = export_one(one.blueprint, here.task, folder, _fitting(here, one), here.seed, run.recipe.export.golden_steps,
                                    {"member": one.member.name, "teacher_sha256": here.teacher.info.sha256}, run.recipe.export.devices)  # fmt: skip
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


def _fitting(here: Scene, one: Chosen) -> list[str]:
    """The recipe's targets that can hold a member; of the others it is told why not."""
    found = []
    for target in here.run.recipe.export.targets:
        if why := exporters.unfit(target, one.blueprint):
            here.run.tell("export", f"{one.member.name}: not written as {target}: {why}")
        else:
            found.append(target)
    return found


def export_one(blueprint: Blueprint, task: Task, folder: Path, targets: Sequence[str], run_seed: int, golden_steps: int,
               meta: Mapping[str, str], devices: Sequence[str] = ()) -> tuple[list[Artifact], int]:  # fmt: skip
    """One policy to its targets, with golden sequences from states that it visits itself, and their environment steps."""
    visited = golden.record(NumpyPolicy(blueprint), task, run_seed, golden_steps)
    made = exporters.export(blueprint, folder, targets, visited, meta)
    return [_measured(one, blueprint, visited, devices) for one in made], visited.env_steps


def _measured(artifact: Artifact, blueprint: Blueprint, visited: golden.Golden, devices: Sequence[str]) -> Artifact:
    """The C with what it costs on those microcontrollers that can be emulated here and have room for it."""
    if artifact.target != "c":
        return artifact
    spec, head, view = blueprint.spec, blueprint.head, blueprint.view
    flat = spaces.input_rows(visited.obs, spec.observation_space, view)
    measured, notes = [], [artifact.note]
    for name in (one for one in devices if not firmware.missing(one)):
        try:
            firmware.check_size(name, artifact.size_bytes)
            measured.append(emulated.cost(artifact.folder, spec, head, view, name, flat, visited.first))
        except firmware.DoesNotFit as error:
            notes.append(f"{name}: {error}")
    return replace(artifact, devices=measured, note="; ".join(notes))


# ---------------------------------------------------------------- the end


def conclude(
    here: Scene, chosen: Sequence[Chosen], artifacts: Mapping[str, Sequence[Artifact]], proved: Proved,
    imitated: Progress, choice: Mapping[str, Any], polished: Cost, stressed: Mapping[str, Sequence[Stressed]],
) -> RunResult:  # fmt: skip
    """result.json: everything the report, the table and --json tell."""
    run = here.run
    _film(here, chosen, proved)
    galleries = gallery.collect(here, chosen, proved)
    unknown = blindness.notes(here, chosen)  # what no training could have taught
    records = [storage.read_json(path) for path in sorted((run.folder / "records").glob("*.json"))]
    played = 0 if isinstance(here.task, RecordedTask) else 1  # steps of recordings are nobody's environment steps
    bill = Bill(
        verify_steps=played * (sum(e.env_steps for e in here.evaluations.values()) + proved.bound_steps),
        collection_steps=imitated.collection_steps,
        race_steps=played * (imitated.race_steps + int(choice["race_steps"])),
        polish_steps=played * polished.env_steps,
        proof_steps=played * proved.proof_steps,
        teacher_queries=imitated.teacher_queries
        + (here.task.records.rows if isinstance(here.task, RecordedTask) else 0),
        gradient_steps=imitated.gradient_steps,
        critic_fits=imitated.critic_fits,
        critic_steps=played * sum(record.get("critic_steps", 0) for record in records),
        seconds=imitated.seconds + polished.seconds + sum(float(record["seconds"]) for record in records),
        peak_memory_bytes=machine.peak_memory_bytes(),
        stress_steps=played * sum(record.get("stress_steps", 0) for record in records),
        other_steps=played * sum(record.get("other_steps", 0) for record in records),  # only some stages have any
    )
    inside = {
        name: [replace(a, folder=a.folder.relative_to(run.folder)) for a in made] for name, made in artifacts.items()
    }
    members = gallery.filled([_member(one, inside[one.member.name], proved) for one in chosen], galleries)
    members = stressing.filled(members, stressed)
    members = [portrait.portrayed(run, m, one.blueprint) for m, one in zip(members, chosen, strict=True)]
    result = RunResult(
        here.task.name, here.teacher.info, here.evaluations, here.mode, run.recipe.prove.retain, run.recipe.prove.alpha, members, bill,
        run.identity["machine"], run.identity["versions"], f"limbeck distill {shlex.quote(str(run.folder / runs.RECIPE))} --out NEW_FOLDER",
        (*getattr(here.task, "notes", ()), *unknown), _scores(here, chosen), proved.family,
    )  # fmt: skip
    if not (run.folder / runs.RESULT).exists():
        storage.write_json(run.folder / runs.RESULT, result)
    return reporting.load_result(run.folder)


def _scores(here: Scene, chosen: Sequence[Chosen]) -> dict[str, dict[str, Rate]]:
    """Accuracy and macro-F1 of teacher and students, where the task is a labelled set."""
    students: dict[str, Policy] = {one.member.name: NumpyPolicy(one.blueprint) for one in chosen}
    found = labelled.scores(here.task, {"teacher": here.teacher.policy, **students}, here.seed)
    for name, rates in found.items():
        told = ", ".join(
            f"{key.replace('_', '-')} {r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for key, r in rates.items()
        )
        here.run.tell("score", f"{name}: {told} on {rates['accuracy'].rows} test rows")
    return found


def _member(one: Chosen, artifacts: Sequence[Artifact], proved: Proved) -> MemberReport:
    name = one.member.name
    notes = proved.notes.get(name, {})
    shown = [replace(a, note=notes.get(a.target, a.note)) for a in artifacts]
    exact = [a for a in artifacts if a.target not in replaying.LOSSY]  # whose bytes are this policy's
    smallest = min((a.size_bytes for a in exact), default=quantised.weight_bytes(one.blueprint))
    return MemberReport(
        name, one.member.architecture.spec, one.member.seed, one.blueprint.parameters, smallest, one.blueprint.multiply_adds,
        proved.proofs.get(name), proved.latency[name], shown, one.polished, formulas.formula(one.blueprint), lineage=one.lineage,
    )  # fmt: skip


def _film(here: Scene, chosen: Sequence[Chosen], proved: Proved) -> None:
    """Video of the smallest proved student beside the teacher."""
    run = here.run
    if unprovable(here) is not None:
        run.tell("report", "no video: there is no teacher who plays")
        return
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
    """The page and the manifest, and the end for the trackers: those that followed the run, or else all that it names."""
    run = here.run
    page = reporting.write(run.folder)
    storage.write_manifest(run.folder)
    (run.follower or live.Live(run.folder, run.recipe.report.track, run.tell)).finished()
    run.tell("report", str(page))
