"""Export again: members of a finished run, or one policy file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import blueprints, exporters, recipes, reporting, settings, spaces, storage, tasks
from limbeck.assets import PREFIX, bundled
from limbeck.contracts import Artifact, Blueprint, MemberReport, RunResult, Task
from limbeck.errors import InputError, printable, unknown
from limbeck.runs import RECIPE, RESULT
from limbeck.settings import Recipe
from limbeck.stages import ship
from limbeck.stages.opening import open_both, open_task
from limbeck.standalone.folders import finished


def export(
    run: Path, members: Sequence[str], targets: Sequence[str], out: Path | None, env: str | None
) -> list[Artifact]:
    """`limbeck export`: members of a run, or one policy file. `env` stands in for the environment stored with them."""
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
    names, recipe = _members(finished(run), members), settings.recipe_from(recipes.read(run / RECIPE))
    task = _task_of(run, recipe, env)
    made: dict[str, list[Artifact]] = {}
    with storage.locked(run) if out is None else contextlib.nullcontext():
        for name in names:
            blueprint = blueprints.load(run / "students" / name / "policy.safetensors")[0]
            _check_spaces(blueprint, task)
            folder = (out or run / "artifacts") / name
            wanted = targets if out else [*_present(folder), *targets]
            meta = {"member": name, "teacher_sha256": finished(run).teacher.sha256}
            made[name] = ship.export_one(
                blueprint, task, folder, wanted, recipe.seed, recipe.export.golden_steps, meta, recipe.export.devices
            )
        if out is None:
            _list_in_result(run, made)
    return [artifact for artifacts in made.values() for artifact in artifacts]


def _task_of(run: Path, recipe: Recipe, env: str | None) -> Task:
    """The task whose states the check replays: the one that was named, or the run's own."""
    if env is not None:
        return open_task(recipe, env)
    if recipe.env is not None:
        return open_task(recipe, _harmless(settings.named("environment", recipe.env), run))
    _harmless(recipe.teacher.removeprefix(PREFIX), run)  # recordings: what is right is the teacher's to say
    return open_both(recipe)[0]


def _list_in_result(run: Path, made: Mapping[str, Sequence[Artifact]]) -> None:
    """result.json, the page and the manifest tell what was added; what the run said of its own artefacts stays."""
    result = reporting.load_result(run)
    members = [_with_artifacts(run, member, made.get(member.name, ())) for member in result.members]
    storage.write_json(run / RESULT, replace(result, members=members))
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
    task = _named_task(blueprint, path) if env is None else tasks.resolve(env)
    _check_spaces(blueprint, task)
    meta: dict[str, Any] = {"member": path.stem, "policy_sha256": storage.sha256(path)}
    if "teacher_sha256" in provenance:
        meta["teacher_sha256"] = str(provenance["teacher_sha256"])
    folder = out or path.parent / f"{path.stem}-artifacts"
    return ship.export_one(blueprint, task, folder, targets, 0, Recipe.export.golden_steps, meta)


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


def _check_spaces(blueprint: Blueprint, task: Task) -> None:
    for what in ("observation_space", "action_space"):
        ours, theirs = (spaces.to_json(getattr(spec, what)) for spec in (blueprint.spec, task.spec))
        if ours != theirs:
            raise InputError(
                f"the policy's {what.replace('_', ' ')} is {getattr(blueprint.spec, what)}, that of {task.name} {getattr(task.spec, what)}. Give the policy's own environment with --env."
            )


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
