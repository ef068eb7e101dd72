"""The verbs that stand alone: prove any policy against any other, export any policy, check any artefact."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, proof, recipes, reporting, seeding, settings, storage, tasks, teachers
from limbeck.assets import bundled
from limbeck.contracts import Artifact, Bounds, Evaluation, Mode, Policy, Proof, RunResult, Task, Teacher
from limbeck.errors import InputError, StorageError, printable, unknown
from limbeck.exporters import CheckRow
from limbeck.reporting.reading import build
from limbeck.runs import RECIPE, RESULT, Tell
from limbeck.settings import ProveSettings, Recipe
from limbeck.stages import ship
from limbeck.teachers import verification

# ---------------------------------------------------------------- prove

PROOF = Path("proof.json")  # where a proof that belongs to no run is kept


@dataclass(frozen=True)
class Duel:
    """Who is proved against whom, on what, and where the claim is kept."""

    student: Policy
    played_by: str
    member: str
    teacher: Teacher
    task: Task
    mode: Mode
    evaluations: Mapping[str, Evaluation]
    bounds: Bounds
    settings: ProveSettings
    seed: int
    path: Path  # of the stored proof
    returns: Path  # of the cache of teacher and random returns
    claims: Mapping[str, str]  # what a stored proof must agree with to be continued
    run: Path | None = None  # the run whose manifest lists the proof


def prove(
    student: str, teacher: str | None, env: str | None, retain: float, alpha: float, seed: int, max_episodes: int,
    normaliser: str | None, plan: bool, out: Path | None, options: Sequence[str], tell: Tell,
) -> Proof | dict[str, Any]:  # fmt: skip
    """`limbeck prove`: continues the stored proof of the same claim with new seeds, or says what one would cost."""
    given = settings.with_options({"teacher": teacher or "-", "env": env or "-"}, options)
    given["prove"] = {**given.get("prove", {}), "retain": retain, "alpha": alpha, "max_episodes": max_episodes}
    recipe = settings.recipe_from({**given, "seed": seed, "normaliser": normaliser})
    tasks.watchdog.limit_seconds = recipe.task.step_timeout
    if teacher is not None and not plan:
        storage.probe_writable((out or PROOF).parent)  # before the teacher is played
    duel = _from_run(student, recipe, out, tell) if teacher is None else _from_files(student, recipe, out, tell)
    if plan:
        return _plan(duel)
    with _held(duel):
        found = proof.prove(
            duel.student, duel.teacher.policy, duel.task, member=duel.member, played_by=duel.played_by, bounds=duel.bounds,
            settings=duel.settings, run_seed=duel.seed, teacher_mode=duel.mode, cache=proof.ReturnCache(duel.returns, duel.teacher.info.sha256),
            previous=_stored(duel, tell),
        )  # fmt: skip
        storage.write_json(duel.path, {"proof": found, "claims": duel.claims})
        if duel.run is not None:
            storage.write_manifest(duel.run)
    return found


def _held(duel: Duel) -> AbstractContextManager[None]:
    """The run that the member belongs to, or this proof alone: other runs may be under way below the same folder."""
    if duel.run is not None:
        return storage.locked(duel.run)
    orphans = f".{glob.escape(duel.path.stem)}*{storage.ASIDE}"
    return storage.locked(duel.path.parent, f".{duel.path.name}.lock", orphans)


def _from_files(student: str, recipe: Recipe, out: Path | None, tell: Tell) -> Duel:
    """Two policy files (or an artefact folder) and an environment."""
    if recipe.env == "-":
        raise InputError(
            "prove needs an environment beside student and teacher. Give its id, for example LunarLander-v3."
        )
    task = tasks.resolve(recipe.env, **recipe.task.kwargs)
    teacher = teachers.load(bundled(recipe.teacher), task.spec, normaliser=recipe.normaliser)
    policy, played_by, digest = _student(student, task)
    seen = verification.verify(teacher, task, replace(recipe.verify, accept=True), recipe.seed)
    for note in seen.notes:
        tell("verify", note)
    bounds, _ = proof.bounds_for(task, seen.evaluations, recipe.prove, recipe.seed, seen.mode)
    path = out or PROOF
    claims = {"student": digest, "teacher": teacher.info.sha256, "task": task.name, "seed": str(recipe.seed)}
    return Duel(policy, played_by, Path(student).stem, teacher, task, seen.mode, seen.evaluations, bounds, recipe.prove, recipe.seed, path,
                path.with_suffix(".returns.json"), claims)  # fmt: skip


def _student(source: str, task: Task) -> tuple[Policy, str, str]:
    """A policy to be proved: an artefact folder plays itself, a file is loaded like any teacher."""
    folder = Path(source)
    if folder.is_dir():
        able = sorted((row.target for row in exporters.check(folder) if row.ok), key=lambda target: target != "c")
        if not able:
            raise InputError(
                f"{source} holds no artefact that runs here. Give a policy file, or install what limbeck check {source} names."
            )
        return exporters.load(folder, able[0]), able[0], storage.sha256(folder / storage.MANIFEST)
    loaded = teachers.load(source, task.spec)
    return loaded.policy, "numpy", loaded.info.sha256


def _from_run(student: str, recipe: Recipe, out: Path | None, tell: Tell) -> Duel:
    """RUN:MEMBER: the run's teacher, task and bounds; the same claim continues the run's own proof."""
    folder_text, colon, name = student.rpartition(":")
    folder = Path(folder_text)
    if not colon or not (folder / RESULT).is_file():
        raise InputError(
            f"prove was given {student!r} without a teacher. Allowed: STUDENT TEACHER ENV, or RUN:MEMBER with the folder of a finished run."
        )
    result = reporting.load_result(folder)
    ran = settings.recipe_from(recipes.read(folder / RECIPE))
    member = next((m for m in result.members if m.name == name), None)
    if member is None:
        raise unknown("member", name, [m.name for m in result.members])
    task = tasks.resolve(settings.named("environment", ran.env), **ran.task.kwargs)
    teacher = teachers.load(bundled(settings.named("teacher", ran.teacher)), task.spec, normaliser=ran.normaliser)
    blueprint = blueprints.load(folder / "students" / name / "policy.safetensors")[0]
    here = [replace(a, folder=folder / a.folder) for a in member.artifacts]
    (played_by, policy), *_ = ship.players(blueprint, here).items()
    bounds = build(Bounds, storage.read_json(folder / "records" / "bounds.json")["bounds"], "bounds")
    chosen = dataclasses.replace(
        ran.prove, retain=recipe.prove.retain, alpha=recipe.prove.alpha, max_episodes=recipe.prove.max_episodes
    )
    return Duel(policy, played_by, name, teacher, task, result.mode, result.evaluations, bounds, chosen, ran.seed,
                out or folder / "proofs" / f"{name}.continued.json", folder / "proofs" / "returns.json",
                {"member": name, "teacher": teacher.info.sha256, "task": task.name, "seed": str(ran.seed)}, folder)  # fmt: skip


def _stored(duel: Duel, tell: Tell) -> Proof | None:
    """The proof to continue: of the same policies, task and stream; another's file is refused, never overwritten."""
    first = duel.path.parent / f"{duel.member}.json"  # the run's own proof
    if not duel.path.exists():
        if not (duel.path.name.endswith(".continued.json") and first.exists()):
            return None
        previous: Proof = build(Proof, storage.read_json(first), "proof")
    else:
        stored = storage.read_json(duel.path)
        if stored["claims"] != dict(duel.claims):
            raise StorageError(f"{duel.path} holds the proof of other policies. Choose another --out.")
        previous = build(Proof, stored["proof"], "proof")
    tell("prove", f"continuing after {previous.episodes} episodes")
    return previous


def _plan(duel: Duel) -> dict[str, Any]:
    """Episodes to expect, from a pilot on selection seeds that the proof never sees."""
    seeds = [seeding.episode_seed(duel.seed, "select", i) for i in range(32)]
    return dict(
        proof.plan(
            duel.student, duel.teacher.policy, duel.task, duel.bounds, duel.settings, seeds, duel.mode, duel.seed
        )
    )


# ---------------------------------------------------------------- export and check


def export(run: Path, members: Sequence[str], targets: Sequence[str], out: Path | None) -> list[Artifact]:
    """`limbeck export`: members of a run, or one policy file."""
    run = Path(bundled(str(run)))
    if not run.exists():
        raise InputError(
            f"nothing is at {printable(run)}. Give the folder of a run, or a policy file such as RUN/students/MEMBER/policy.safetensors."
        )
    return _export_run(run, members, targets, out) if run.is_dir() else _export_file(run, targets, out)


def _export_run(run: Path, members: Sequence[str], targets: Sequence[str], out: Path | None) -> list[Artifact]:
    """Into the run itself (beside the targets that are there already, which are written again) or into `out`."""
    result, recipe = _finished(run), settings.recipe_from(recipes.read(run / RECIPE))
    task = tasks.resolve(settings.named("environment", recipe.env), **recipe.task.kwargs)
    made: list[Artifact] = []
    for name in _members(result, members):
        blueprint = blueprints.load(run / "students" / name / "policy.safetensors")[0]
        folder = (out or run / "artifacts") / name
        wanted = targets if out else [*_present(folder), *targets]
        meta = {"member": name, "teacher_sha256": result.teacher.sha256}
        made += ship.export_one(blueprint, task, folder, wanted, recipe.seed, recipe.export.golden_steps, meta)
    if out is None:
        storage.write_manifest(run)
    return made


def _present(folder: Path) -> Sequence[str]:
    return exporters.contract.read(folder).targets if (folder / storage.MANIFEST).is_file() else ()


def _export_file(path: Path, targets: Sequence[str], out: Path | None) -> list[Artifact]:
    source = Path(bundled(str(path)))
    if not source.is_file():
        raise InputError(f"nothing at {path}. Give the folder of a run, or a policy file such as policy.safetensors.")
    blueprint, provenance = blueprints.load(source)
    folder = out or path.parent / f"{path.stem}-artifacts"
    meta = {"member": path.stem, "policy_sha256": storage.sha256(source)}
    if "teacher_sha256" in provenance:
        meta["teacher_sha256"] = str(provenance["teacher_sha256"])
    task = tasks.resolve(blueprint.spec.name)
    return ship.export_one(blueprint, task, folder, targets, 0, Recipe.export.golden_steps, meta)


def _finished(run: Path) -> RunResult:
    if not (run / RESULT).is_file():
        raise InputError(
            f"{run} holds no {RESULT}. Give the folder of a run, or finish it by running its command again."
        )
    return reporting.load_result(run)


def _members(result: RunResult, wanted: Sequence[str]) -> list[str]:
    names = [member.name for member in result.members]
    proved = [m.name for m in result.members if m.proof is not None and m.proof.verdict == "proved"]
    chosen: list[str] = []
    for name in wanted:
        if name == "all":
            chosen += names
        elif name == "smallest":
            if not proved:
                raise InputError(
                    f"no member was proved, so there is no smallest proved one. Name one of: {', '.join(names)}."
                )
            chosen.append(proved[-1])
        elif name in names:
            chosen.append(name)
        else:
            raise unknown("member", name, [*names, "smallest", "all"])
    return list(dict.fromkeys(chosen))


def check(folder: Path) -> list[CheckRow]:
    """`limbeck check`: one artefact folder, or all artefacts of a run."""
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}. Give artifacts/MEMBER of a run, or the run's folder.")
    folders = (
        sorted(p for p in (folder / "artifacts").iterdir() if p.is_dir())
        if (folder / "artifacts").is_dir()
        else [folder]
    )
    return [row for one in folders for row in exporters.check(one)]


def report(run: Path) -> Path:
    """`limbeck report`: the page of a finished run, written again."""
    _finished(run)
    page = reporting.write(run)
    storage.write_manifest(run)
    return page
