"""Who is proved against whom: from what was typed to two policies, a task, bounds and a file for the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, identity, proof, recipes, settings, storage, teachers
from limbeck.assets import bundled
from limbeck.contracts import Bounds, Evaluation, Mode, Policy, RunResult, Task, Teacher
from limbeck.errors import InputError, StorageError, printable, unknown
from limbeck.reporting.reading import build
from limbeck.runs import RECIPE, RESULT, Tell
from limbeck.settings import ProveSettings, Recipe
from limbeck.stages import proving
from limbeck.stages.opening import open_task, open_teacher
from limbeck.standalone.folders import finished
from limbeck.teachers import verification

PROOF = Path("proof.json")  # where a proof that belongs to no run is kept
FOR_FILES = (  # keys whose options say something about a proof of two files
    "prove", "verify", "task", "kind", "architecture", "trust", "teacher_keys", "teacher_indices",
)  # fmt: skip
FOR_RUNS = ("prove.retain", "prove.alpha", "prove.max_episodes", "prove.chunk")  # the rest is as the run had it


@dataclass(frozen=True)
class Asked:
    """What `limbeck prove` was given; None: the run's own value, or the default where there is no run."""

    retain: float | None = None
    alpha: float | None = None
    seed: int | None = None
    max_episodes: int | None = None
    normaliser: str | None = None
    out: Path | None = None
    options: Sequence[str] = ()

    def recipe(self, stored: Mapping[str, Any]) -> Recipe:
        """The stored values with what was given put in; refuses what was given twice."""
        values = settings.with_options(stored, self.options)
        flags = {"prove.retain": self.retain, "prove.alpha": self.alpha, "prove.max_episodes": self.max_episodes}
        keys = [option.partition("=")[0] for option in self.options]
        for path, value in flags.items():
            if value is None:
                continue
            if path in keys:
                raise InputError(f"{path} was given twice, as a flag and with --options. Give it once.")
            values["prove"] = {**values.get("prove", {}), path.split(".")[1]: value}
        if self.seed is not None:
            values["seed"] = self.seed
        if self.normaliser is not None:
            values["normaliser"] = self.normaliser
        return settings.recipe_from(values)


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
    run: Path | None = None  # the run that the member belongs to
    own: bool = False  # the claim that the run itself makes: same retention, level, seed, and place in the sequence


# ---------------------------------------------------------------- two files


def from_files(student: str, teacher: str, env: str | None, asked: Asked, tell: Tell) -> Duel:
    """Two policy files (or an artefact folder) and an environment."""
    if env is None:
        raise InputError("prove needs an environment beside student and teacher. Give its id, such as LunarLander-v3.")
    for option in asked.options:
        _refuse(
            option, option.partition(".")[0] in FOR_FILES, f"{', '.join(FOR_FILES)} with a key, such as prove.chunk"
        )
    recipe = asked.recipe({"teacher": teacher, "env": env})
    path = asked.out or PROOF
    task = open_task(recipe)
    master = open_teacher(recipe, task)
    policy, played_by, name, digest = student_of(student, task)
    seen = verification.verify(master, task, replace(recipe.verify, accept=True), recipe.seed)
    for note in seen.notes:
        tell("verify", note)
    bounds, _ = proof.bounds_for(task, seen.evaluations, recipe.prove, recipe.seed, seen.mode)
    claims = _claims(digest, identity.of_teacher(master), task, seen.mode, recipe.seed)
    return Duel(policy, played_by, name, master, task, seen.mode, seen.evaluations, bounds, recipe.prove, recipe.seed, path,
                path.with_suffix(".returns.json"), claims)  # fmt: skip


def student_of(source: str, task: Task) -> tuple[Policy, str, str, str]:
    """(policy, who plays it, its name, its digest): an artefact folder plays itself, a file is loaded like a teacher."""
    folder = Path(source)
    if folder.is_dir():
        able = sorted((row.target for row in exporters.check(folder) if row.ok), key=lambda target: target != "c")
        if not able:
            raise InputError(
                f"{printable(source)} holds no artefact that runs here. Give a policy file, or install what limbeck check names."
            )
        name = folder.resolve().name
        return exporters.load(folder, able[0]), able[0], name, storage.sha256(folder / storage.MANIFEST)
    loaded = teachers.load(bundled(source), task.spec)
    name = folder.stem if folder.is_file() else source
    return loaded.policy, "numpy", name, identity.of_teacher(loaded)


def _claims(student: str, teacher: str, task: Task, mode: Mode, seed: int) -> dict[str, str]:
    return {"student": student, "teacher": teacher, "task": task.name, "mode": mode, "seed": str(seed)}


# ---------------------------------------------------------------- RUN:MEMBER


def from_run(student: str, env: str | None, asked: Asked) -> Duel:
    """RUN:MEMBER: the run's teacher, task and bounds; its own claim continues its own proof, another stands alone."""
    folder, name = _run_and_member(student)
    _refuse_for_runs(env, asked)
    result, stored = finished(folder), recipes.read(folder / RECIPE)
    ran, recipe = settings.recipe_from(stored), asked.recipe(stored)
    if name not in [member.name for member in result.members]:
        raise unknown("member", name, [member.name for member in result.members])
    policy_file = folder / "students" / name / "policy.safetensors"
    _refuse_unprovable(folder, ran, policy_file)
    task, teacher = _task_and_teacher(folder, ran)
    here = [replace(a, folder=folder / a.folder) for m in result.members if m.name == name for a in m.artifacts]
    (played_by, policy), *_ = proving.players(blueprints.load(policy_file)[0], here).items()
    bounds = build(Bounds, storage.read_json(folder / "records" / "bounds.json")["bounds"], "bounds")
    own = asked.out is None and _is_own(result, ran, recipe, name)
    claims = _claims(storage.sha256(policy_file), str(ran.teacher_sha256), task, result.mode, recipe.seed)
    path = asked.out or folder / "proofs" / _file_name(name, recipe, own)
    return Duel(policy, played_by, name, teacher, task, result.mode, result.evaluations, bounds, recipe.prove, recipe.seed, path,
                folder / "proofs" / "returns.json", claims, folder, own)  # fmt: skip


def _refuse_unprovable(folder: Path, ran: Recipe, policy_file: Path) -> None:
    """A run on recordings has no environment, and one after recordings no teacher that plays."""
    if ran.env is None or not (folder / "records" / "bounds.json").is_file():
        why = "has no environment" if ran.env is None else "proved nothing, so it holds no bounds of the return"
        raise InputError(
            f"the run {printable(folder)} {why}. Give a student, a teacher that can play, and an environment: limbeck prove {printable(policy_file)} TEACHER ENV."
        )


def _run_and_member(student: str) -> tuple[Path, str]:
    text, colon, name = student.rpartition(":")
    if not colon or not (Path(text) / RESULT).is_file():
        raise InputError(
            f"prove was given {printable(student)!r} without a teacher. Allowed: STUDENT TEACHER ENV, or RUN:MEMBER with the folder of a finished run."
        )
    return Path(text), name


def _refuse_for_runs(env: str | None, asked: Asked) -> None:
    """The run's teacher, task and bounds stand; whatever would have to change them is refused."""
    for what, value in (("--normaliser", asked.normaliser), ("ENV", env)):
        _refuse(what, value is None, "nothing of the kind")
    for option in asked.options:
        _refuse(option, option.partition("=")[0] in FOR_RUNS, ", ".join(FOR_RUNS))


def _refuse(given: str, applies: bool, allowed: str) -> None:
    if not applies:
        raise InputError(f"{printable(given)} does not apply to this proof. Allowed here: {allowed}. Drop it.")


def _task_and_teacher(folder: Path, ran: Recipe) -> tuple[Task, Teacher]:
    """The run's own task and teacher, found again and compared."""
    task = open_task(ran)
    teacher = open_teacher(ran, task)
    if identity.of_teacher(teacher) != ran.teacher_sha256:
        raise StorageError(
            f"{printable(ran.teacher)} or its normaliser is no longer what {printable(folder)} was made from. Restore it, or distill it into another folder."
        )
    return task, teacher


def _is_own(result: RunResult, ran: Recipe, recipe: Recipe, name: str) -> bool:
    """Whether this is the run's claim: retention, level and seed are its own, and every larger member is proved."""
    same = (recipe.prove.retain, recipe.prove.alpha, recipe.seed) == (ran.prove.retain, ran.prove.alpha, ran.seed)
    larger = [member.proof for member in result.members][: [m.name for m in result.members].index(name)]
    return same and all(found is not None and found.verdict == "proved" for found in larger)


def _file_name(name: str, recipe: Recipe, own: bool) -> str:
    if own:
        return f"{name}.json"
    return f"{name}.retain-{recipe.prove.retain:g}.alpha-{recipe.prove.alpha:g}.seed-{recipe.seed}.json"
