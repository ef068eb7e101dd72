"""Who is proved against whom: from what was typed to two policies, a task, bounds and a file for the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, identity, proof, recipes, settings, storage, teachers
from limbeck.assets import bundled
from limbeck.contracts import Bounds, Evaluation, Mode, Policy, Proof, RunResult, Task, Teacher
from limbeck.errors import InputError, StorageError, printable, unknown
from limbeck.runs import RECIPE, RESULT, Tell
from limbeck.runtimes.firmware import BOARDS
from limbeck.settings import ProveSettings, Recipe
from limbeck.stages import proving
from limbeck.stages.opening import open_task, open_teacher
from limbeck.standalone.folders import finished
from limbeck.teachers import stated, verification

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
    target: str | None = None  # of an artefact folder: whose file plays

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
    own: bool = False  # goes into the run as its own claim: same retention, level, seed, and place in the sequence
    sharing: proof.Sharing | None = None  # of a run's members: how they share alpha
    told: str = ""  # before it is played: the level, where it is less than the family's
    file: str = ""  # of an artefact folder: what plays, "onnx/policy.onnx"


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
    _refuse_target(student, asked.target)
    task = open_task(recipe)
    master = open_teacher(recipe, task)
    policy, played_by, name, digest = student_of(student, task, asked.target)
    seen = verification.verify(master, task, replace(recipe.verify, accept=True), recipe.seed)
    for note in seen.notes:
        tell("verify", note)
    bounds, _ = proof.bounds_for(task, seen.evaluations, recipe.prove, recipe.seed, seen.mode)
    claims = _claims(digest, identity.of_teacher(master), task, seen.mode, recipe.seed)
    return Duel(policy, played_by, name, master, task, seen.mode, seen.evaluations, bounds, recipe.prove, recipe.seed, path,
                path.with_suffix(".returns.json"), claims, file=file_of(student, played_by))  # fmt: skip


def _refuse_target(student: str, target: str | None) -> None:
    """Refuse a target that a student does not hold, before the teacher is played."""
    if target is None:
        return
    folder = Path(student)
    if not folder.is_dir():
        raise InputError(
            f"--target {printable(target)} was given with {printable(student)}, which is no artefact folder. Drop it, or give the folder with the "
            "files of all targets, such as RUN/artifacts/MEMBER."
        )
    held = exporters.contract.read(folder).targets
    if target in held:
        return
    if target not in exporters.targets():
        raise unknown("target", target, held)
    raise InputError(
        f"{printable(student)} holds no {target}. Allowed: {', '.join(held)}; or write it first: limbeck export ... --to {target}."
    )


def student_of(source: str, task: Task, target: str | None = None) -> tuple[Policy, str, str, str]:
    """(policy, who plays it, its name, its digest): an artefact folder plays itself, a file is loaded like a teacher."""
    folder = Path(source)
    if folder.is_dir():
        _refuse_another_task(folder, task)
        policy, played_by = _player(folder, target)
        return policy, played_by, folder.resolve().name, storage.sha256(folder / storage.MANIFEST)
    loaded = teachers.load(bundled(source), task.spec)
    name = folder.stem if folder.is_file() else source
    return loaded.policy, "numpy", name, identity.of_teacher(loaded)


def _refuse_another_task(folder: Path, task: Task) -> None:
    """Refuse an artefact that was made for other observations or actions, before anybody plays; bounds of observations
    may differ, as those of teachers may."""
    made = exporters.contract.intact(folder).spec
    mine, other = stated.shape_of(made.observation_space), stated.shape_of(task.spec.observation_space)
    problems = [f"observations: artefact {mine}, task {other}"] * (mine != other)
    wrong = stated.action_problems(made.action_space, task.spec.action_space)
    problems += [one.replace("teacher", "artefact", 1) for one in wrong]
    if problems:
        raise InputError(
            f"{printable(folder)} was made for {printable(made.name)} and does not fit {printable(task.name)}: "
            f"{printable('; '.join(problems), 400)}. Name its own environment, with a teacher of that, or give another student."
        )


def _player(folder: Path, target: str | None) -> tuple[Policy, str]:
    """The file of a folder that plays: of the named target, or else its C, or else the first that repeats its golden
    rows on this machine itself."""
    rows = [row for row in exporters.check(folder) if target in (None, row.target) and row.backend not in BOARDS]
    sound = sorted((row for row in rows if row.ok), key=lambda row: row.target != "c")
    if sound:
        first = sound[0]
        backends = {one.name: one for one in exporters.backends(folder, first.target)}
        return backends[first.backend].load(), first.target
    if target is None:
        raise InputError(
            f"{printable(folder)} holds no artefact that runs here. Give a policy file, or install what limbeck check names."
        )
    wrong = [row.note for row in rows if row.ok is False]
    if wrong:
        raise InputError(f"the {target} of {printable(folder)} is not played: {wrong[0]} Export it again.")
    lacking = "; ".join(dict.fromkeys(row.note.removeprefix(exporters.NOT_RUN) for row in rows))
    raise InputError(
        f"the {target} of {printable(folder)} cannot be played here: {lacking}. Install it, or choose another --target."
    )


def file_of(source: str, target: str) -> str:
    """What plays of an artefact folder, relative to it: "onnx/policy.onnx"; "" for a policy file."""
    folder = Path(source)
    if not folder.is_dir():
        return ""
    listed = [name for name in storage.read_manifest(folder) if name.startswith(f"{target}/policy.")]
    return ", ".join(map(printable, sorted(listed))) or target


def _claims(student: str, teacher: str, task: Task, mode: Mode, seed: int) -> dict[str, str]:
    return {"student": student, "teacher": teacher, "task": task.name, "mode": mode, "seed": str(seed)}


# ---------------------------------------------------------------- RUN:MEMBER


def from_run(student: str, env: str | None, asked: Asked) -> Duel:
    """RUN:MEMBER: the run's teacher, task and bounds; its own claim continues its own proof, another stands alone.
    With --out the own claim keeps its level, and stands alone all the same."""
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
    fixed = proving.read_fixed(folder)
    sharing = proving.sharing_of(fixed, {one.name: one.lineage for one in result.members}, ran.prove.alpha)
    level = _own_level(sharing, result, ran, recipe, name)
    told = f"the run's own claim: level {level:.3g} of the family's {sharing.alpha:g}" * (0 < level < sharing.alpha)
    if level:
        recipe = replace(recipe, prove=replace(recipe.prove, alpha=level))
    own = level > 0 and asked.out is None
    claims = _claims(storage.sha256(policy_file), str(ran.teacher_sha256), task, result.mode, recipe.seed)
    path = asked.out or folder / "proofs" / _file_name(name, recipe, own)
    return Duel(policy, played_by, name, teacher, task, result.mode, result.evaluations, fixed.bounds, recipe.prove, recipe.seed, path,
                folder / "proofs" / "returns.json", claims, folder, own, sharing, told)  # fmt: skip


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
    if asked.target is not None:
        raise InputError(
            f"--target {printable(asked.target)} was given for a run's member, whose proof is played by its best file. Drop it, or prove "
            "the file by itself: limbeck prove RUN/artifacts/MEMBER TEACHER ENV --target ..."
        )
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


def _own_level(sharing: proof.Sharing, result: RunResult, ran: Recipe, recipe: Recipe, name: str) -> float:
    """The error probability of the run's own claim; 0 where this is none: its retention, alpha or seed is another, or
    the sequence stopped before it. A proof that was begun keeps the level that it was begun with."""
    if (recipe.prove.retain, recipe.prove.alpha, recipe.seed) != (ran.prove.retain, ran.prove.alpha, ran.seed):
        return 0.0
    proofs = {member.name: member.proof for member in result.members}
    begun, level = proofs[name], sharing.level(name, lambda one: _proved(proofs[one]))
    return begun.alpha if level and begun is not None else level


def _proved(found: Proof | None) -> bool:
    return found is not None and found.verdict == "proved"


def _file_name(name: str, recipe: Recipe, own: bool) -> str:
    if own:
        return f"{name}.json"
    return f"{name}.retain-{recipe.prove.retain:g}.alpha-{recipe.prove.alpha:g}.seed-{recipe.seed}.json"
