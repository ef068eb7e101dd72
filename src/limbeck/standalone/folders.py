"""Finished folders looked at again: check their files, find what belongs to an artefact, write a run's page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from limbeck import recipes, reporting, settings, spaces, storage, tasks
from limbeck.contracts import RunResult, Spec, Task
from limbeck.errors import InputError, StorageError, printable
from limbeck.reporting import trackers
from limbeck.runs import RECIPE, RESULT, Tell
from limbeck.stages.opening import open_task

WEIGHTS = ("numpy", "safetensors")  # targets whose file holds the whole policy


def artifacts(folder: Path) -> tuple[list[Path], bool]:
    """The artefact folders of a folder, and whether it is a whole run, whose own files are held against its manifest."""
    if not folder.is_dir():
        raise InputError(
            f"no folder at {printable(folder)}. Give artifacts/MEMBER of a run, or the run's folder, such as runs/demo."
        )
    if not (folder / "artifacts").is_dir():
        return [folder], False
    if (folder / RECIPE).is_file():
        _check_run(folder)
    return sorted(path for path in (folder / "artifacts").iterdir() if path.is_dir()), True


def _check_run(run: Path) -> None:
    """Raise StorageError where a file of the run is no longer what its manifest says, InputError where it lists too few."""
    if not (run / storage.MANIFEST).is_file():
        raise InputError(
            f"{printable(run)} has no {storage.MANIFEST}: the run did not finish. Run its command again, then check it."
        )
    listed = storage.read_manifest(run)
    if unlisted := [name for name in (RECIPE, RESULT) if name not in listed]:
        raise InputError(
            f"{printable(run)}: {', '.join(unlisted)} is not in {storage.MANIFEST}. Run its command again elsewhere."
        )
    changed = storage.check_manifest(run)
    if changed:
        raise StorageError(
            f"{printable(run)}: {', '.join(map(printable, changed))} is no longer what the run wrote. Restore it, or run its command again elsewhere."
        )


def run_of(artefact: Path) -> Path:
    """The run that an artefact folder would belong to, RUN/artifacts/MEMBER."""
    return artefact.resolve().parent.parent


def weights(artefact: Path, targets: Collection[str]) -> Path | None:
    """The file with the whole policy of an artefact folder: of one of its `targets`, or of the run around it."""
    places = [artefact / name / "policy.safetensors" for name in WEIGHTS if name in targets]
    places.append(run_of(artefact) / "students" / artefact.resolve().name / "policy.safetensors")
    return next((path for path in places if path.is_file()), None)


def task_of(spec: Spec, run: Path, env: str | None) -> Task:
    """The named environment, or that of the run with its wrappers (where there is one), or the one that a policy names.

    Raises InputError for none, for one that would import a module, and for one that does not fit the policy.
    """
    recipe = settings.recipe_from(recipes.read(run / RECIPE)) if (run / RECIPE).is_file() else None
    named = spec.name if recipe is None else recipe.env
    if env is None and (named is None or ":" in named):
        why = "names no environment" if named is None else f"names {printable(named)!r}, which imports a module"
        who = "the artefact" if recipe is None else printable(run)
        raise InputError(f"{who} {why}. Name the environment with --env if you trust it.")
    task = open_task(recipe, env) if recipe is not None else tasks.resolve(env or str(named))
    check_spaces(spec, task)
    return task


def check_spaces(spec: Spec, task: Task) -> None:
    """Raise InputError for a task whose observations or actions are not those of a policy."""
    for what in ("observation_space", "action_space"):
        ours, theirs = (getattr(one, what) for one in (spec, task.spec))
        if spaces.to_json(ours) != spaces.to_json(theirs):
            raise InputError(
                f"the policy's {what.replace('_', ' ')} is {' '.join(str(ours).split())}, that of {task.name} {' '.join(str(theirs).split())}. Give the policy's own environment with --env."
            )


def report(run: Path, to: Sequence[str], tell: Tell) -> Path:
    """`limbeck report`: the page of a finished run, written again, and the run for other tools to show."""
    trackers.require(to)
    finished(run)
    with storage.locked(run):
        page = reporting.write(run)
        storage.write_manifest(run)
        for name, place in trackers.track(run, to).items():
            tell("report", f"{name}: {place}")
    return page


def finished(run: Path) -> RunResult:
    """The result of a finished run."""
    if not (run / RESULT).is_file():
        raise InputError(
            f"{printable(run)} holds no {RESULT}. Give the folder of a run, or finish it by running its command again."
        )
    return reporting.load_result(run)
