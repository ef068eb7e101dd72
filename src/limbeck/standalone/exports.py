"""Export again: members of a finished run, or one policy file."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, recipes, reporting, rollout, seeding, settings, storage, tasks
from limbeck.assets import PREFIX, bundled
from limbeck.contracts import Artifact, Blueprint, MemberReport, RunResult, Task
from limbeck.errors import InputError, printable, unknown
from limbeck.exporters import replaying
from limbeck.runs import RECIPE, RESULT
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.runtimes.shadow import Shadowed
from limbeck.settings import Recipe
from limbeck.stages import ship
from limbeck.stages.opening import open_both, open_task
from limbeck.standalone.checking import FIRST_SEED, MOST_STEPS
from limbeck.standalone.folders import check_spaces, finished
from limbeck.tasks import RecordedTask

LOOP_EPISODES = 2  # that added targets watch


def export(
    run: Path, members: Sequence[str], targets: Sequence[str], out: Path | None, env: str | None
) -> list[Artifact]:
    """`limbeck export`: members of a run, or one policy file. `env` stands in for the environment stored with them."""
    if not targets:
        raise InputError(f"--to names no target. Allowed: {', '.join(exporters.targets())}.")
    run = Path(bundled(str(run)))
    if not run.exists():
        raise InputError(
            f"nothing is at {printable(run)}. Give the folder of a run, or a policy file such as RUN/students/MEMBER/policy.safetensors."
        )
    return _export_run(run, members, targets, out, env) if run.is_dir() else _export_file(run, targets, out, env)


def _export_run(
    run: Path, members: Sequence[str], targets: Sequence[str], out: Path | None, env: str | None
) -> list[Artifact]:
    """Into the run itself (beside the targets that are there already, which are written again) or into `out`."""
    result, recipe = finished(run), settings.recipe_from(recipes.read(run / RECIPE))
    names = _members(result, members)
    task = _task_of(run, recipe, env)
    policies, wanted = {}, {}
    for name in names:
        policies[name] = blueprints.load(run / "students" / name / "policy.safetensors")[0]
        check_spaces(policies[name].spec, task)
        wanted[name] = list(dict.fromkeys(targets if out else [*_present(run / "artifacts" / name), *targets]))
        exporters.require(wanted[name])
        exporters.require_fit(policies[name], wanted[name])
    if out is not None:
        storage.probe_writable(out)
    made: dict[str, list[Artifact]] = {}
    spent = 0
    with storage.locked(run) if out is None else contextlib.nullcontext():
        for name, blueprint in policies.items():
            meta = {"member": name, "teacher_sha256": result.teacher.sha256}
            written, steps = ship.export_one(
                blueprint, task, (out or run / "artifacts") / name, wanted[name], recipe.seed, recipe.export.golden_steps,
                meta, recipe.export.devices,
            )  # fmt: skip
            member = next(one for one in result.members if one.name == name)
            made[name], looped = _with_verdicts(written, blueprint, task, member, recipe)
            spent += steps + looped
        if out is None:
            _list_in_result(run, made, 0 if isinstance(task, RecordedTask) else spent)
    return [artifact for artifacts in made.values() for artifact in artifacts]


def _with_verdicts(
    made: Sequence[Artifact], blueprint: Blueprint, task: Task, member: MemberReport, recipe: Recipe
) -> tuple[list[Artifact], int]:
    """What can be said of targets that the run did not play: they watch the policy in closed loop, as in its proof.

    With the environment steps of that.
    """
    known = {artifact.target for artifact in member.artifacts}
    added = [a for a in made if a.compiled and a.target not in known]
    exact = {a.target: exporters.load(a.folder.parent, a.target) for a in added if a.target not in replaying.LOSSY}
    shadowed, steps = Shadowed(NumpyPolicy(blueprint), exact), 0
    if exact:
        seeds = [seeding.episode_seed(recipe.seed, "golden", FIRST_SEED + i) for i in range(LOOP_EPISODES)]
        steps = rollout.play(shadowed, task, seeds, run_seed=recipe.seed, most=MOST_STEPS).env_steps
    verdict = "not tested" if member.proof is None else f"{member.proof.verdict!r}"
    told = {}
    for one in added:
        if one.target not in exact:
            told[one.target] = f"not proved: {_proving(one, recipe)}"
        elif different := shadowed.different[one.target]:
            told[one.target] = f"not proved: acted differently in {different} rows of {steps:,} steps in closed loop"
        else:
            told[one.target] = (
                f"repeats the policy in {steps:,} steps in closed loop; the policy's verdict was {verdict}"
            )
    return [replace(a, note="; ".join(filter(None, (a.note, told.get(a.target))))) for a in made], steps


def _proving(artifact: Artifact, recipe: Recipe) -> str:
    """The command that would prove a target as it stands: its file is a policy file."""
    words = ["limbeck", "prove", str(artifact.folder / artifact.files[0]), recipe.teacher, recipe.env or "ENV"]
    words += ["--retain", f"{recipe.prove.retain:g}"]
    return shlex.join([*words, *(["--normaliser", recipe.normaliser] if recipe.normaliser else [])])


def _task_of(run: Path, recipe: Recipe, env: str | None) -> Task:
    """The task whose states the check replays: the one that was named, or the run's own."""
    if env is not None:
        return open_task(recipe, env)
    if recipe.env is not None:
        return open_task(recipe, _harmless(settings.named("environment", recipe.env), run))
    _harmless(recipe.teacher.removeprefix(PREFIX), run)  # recordings: what is right is the teacher's to say
    return open_both(recipe)[0]


def _list_in_result(run: Path, made: Mapping[str, Sequence[Artifact]], steps: int) -> None:
    """result.json, the page and the manifest tell what was added and what it cost; what the run said of its own stays."""
    result = reporting.load_result(run)
    members = [_with_artifacts(run, member, made.get(member.name, ())) for member in result.members]
    bill = replace(result.bill, other_steps=result.bill.other_steps + steps)
    storage.write_json(run / RESULT, replace(result, members=members, bill=bill))
    reporting.write(run)
    storage.write_manifest(run)


def _with_artifacts(run: Path, member: MemberReport, made: Sequence[Artifact]) -> MemberReport:
    known = {artifact.target for artifact in member.artifacts}
    added = [replace(a, folder=a.folder.relative_to(run)) for a in made if a.target not in known]
    return replace(member, artifacts=[*member.artifacts, *added])


def _present(folder: Path) -> Sequence[str]:
    return exporters.contract.read(folder).targets if (folder / storage.MANIFEST).is_file() else ()


def _export_file(path: Path, targets: Sequence[str], out: Path | None, env: str | None) -> list[Artifact]:
    if not path.is_file():
        raise InputError(
            f"nothing at {printable(path)}. Give the folder of a run, or a policy file such as policy.safetensors."
        )
    blueprint, provenance = blueprints.load(path)
    exporters.require(targets)
    exporters.require_fit(blueprint, targets)
    task = _named_task(blueprint, path) if env is None else tasks.resolve(env)
    check_spaces(blueprint.spec, task)
    meta: dict[str, Any] = {"member": path.stem, "policy_sha256": storage.sha256(path)}
    if "teacher_sha256" in provenance:
        meta["teacher_sha256"] = str(provenance["teacher_sha256"])
    folder = out or path.parent / f"{path.stem}-artifacts"
    storage.probe_writable(folder)
    return ship.export_one(blueprint, task, folder, targets, 0, Recipe.export.golden_steps, meta)[0]


def _named_task(blueprint: Blueprint, path: Path) -> Task:
    name = _harmless(blueprint.spec.name, path)
    try:
        return tasks.resolve(name)
    except InputError as error:
        raise InputError(
            f"{printable(path)} was made for {printable(name)!r}, which is no environment here. "
            "Give one with --env, or export it with its run: limbeck export RUN --members MEMBER."
        ) from error


def _harmless(name: str, path: Path) -> str:
    """The environment that a file names, unless finding it would import a module that the file chose."""
    if ":" in name:
        raise InputError(
            f"{printable(path)} names the environment {printable(name)!r}, which imports a module. Allowed from a file: a plain id. If you trust it, give it with --env."
        )
    return name


def _members(result: RunResult, wanted: Sequence[str]) -> list[str]:
    names = [member.name for member in result.members]
    if not wanted:
        raise InputError(f"--members names no member. Allowed: {', '.join([*names, 'smallest', 'all'])}.")
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
