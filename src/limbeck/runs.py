"""A run is a folder: its identity, the records of finished stages, and the checkpoints of rounds.

A stage that finished left a record and is not done again; a round that finished left a checkpoint. Whatever was
under way at a kill is played again, to the same result, because it depends on nothing but the checkpoint before it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from limbeck import machine, recipes, storage
from limbeck.contracts import Array
from limbeck.errors import InputError, StorageError, printable
from limbeck.settings import Recipe

RECIPE, IDENTITY, RESULT = "recipe.yaml", "run.json", "result.json"
KEEP = 2  # checkpoints
_BEFORE_THE_RECIPE = (storage.LOCK, storage.PROBE, IDENTITY)  # all that a run killed before its recipe was written left

Tell = Callable[[str, str], None]  # (stage, what happened): progress for people


class Follower(Protocol):
    """Who is told of a run's curves while it goes on; it raises nothing, and the run does not depend on it."""

    def added(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """metrics.jsonl ends with these lines now."""
        ...

    def dropped(self) -> None:
        """Lines were removed from metrics.jsonl."""
        ...

    def finished(self) -> None:
        """The result is written."""
        ...


@dataclass(frozen=True)
class Run:
    """An open run folder."""

    folder: Path
    recipe: Recipe
    identity: Mapping[str, Any]
    tell: Tell
    follower: Follower | None = None

    def record(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record `name`: read if the stage finished before, else computed, timed and written."""
        path = self.folder / "records" / f"{name}.json"
        if path.exists():
            return storage.read_table(path)
        begin = time.perf_counter()
        value = storage.plain({**compute(), "seconds": time.perf_counter() - begin})
        storage.write_json(path, value)
        return dict(value)

    def add_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        storage.append_metrics(self.folder, rows)
        if self.follower is not None:
            self.follower.added(rows)

    def drop_metrics(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove lines of rounds that will be played again."""
        rows = storage.read_metrics(self.folder)
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) == len(rows):
            return
        storage.write_text(self.folder / storage.METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        if self.follower is not None:
            self.follower.dropped()


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds other things than a run, before anything in it is touched."""
    if folder.is_dir() and not (folder / RECIPE).exists():
        foreign = [p.name for p in _listed(folder) if p.name not in _BEFORE_THE_RECIPE and not storage.is_aside(p)]
        if foreign:
            raise StorageError(
                f"{folder} is not empty and holds no run, but {printable(sorted(foreign)[0])!r}. Choose another --out."
            )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}. Choose another --out.") from error


def open_run(folder: Path, recipe: Recipe, tell: Tell, task: Mapping[str, Any]) -> Run:
    """Create the folder's identity, or check that it belongs to this recipe, teacher and task (`identity.of_task`)."""
    path = folder / RECIPE
    if path.exists():
        stored = _stored_recipe(path)
        if recipe.seconds is not None and recipe.seconds_rounds is None:  # the number a time limit became stands
            recipe = replace(recipe, seconds_rounds=stored.get("seconds_rounds"))
        changed = recipes.changed_keys(stored, storage.plain(recipe))
        if changed and all(key.startswith("verify.") for key in changed) and not (folder / "records").exists():
            recipes.write(path, recipe)  # the teacher was refused: how it is judged may change, nothing rests on it yet
            changed = []
        identity = storage.read_table(folder / IDENTITY)
        stands = identity.get("task", {})  # what a recipe does not tell of an environment that is an object
        changed += [key for key, value in storage.plain(task).items() if stands.get(key) != value]
        if changed:
            raise StorageError(
                f"{folder} was made by another recipe: {', '.join(changed)} differ{'s' * (len(changed) == 1)}. Choose another --out, or the same settings to continue."
            )
        if identity["versions"]["limbeck"] != machine.versions()["limbeck"]:
            tell(
                "run",
                f"continued with limbeck {machine.versions()['limbeck']}, begun with {identity['versions']['limbeck']}",
            )
        return Run(folder, recipe, identity, tell)
    refuse_foreign(folder)
    identity = {"versions": machine.versions(), "machine": machine.describe(), "seed": recipe.seed, "threads": recipe.threads,
                "teacher_sha256": recipe.teacher_sha256, "task": storage.plain(task)}  # fmt: skip
    storage.write_json(folder / IDENTITY, identity)
    recipes.write(path, recipe)
    return Run(folder, recipe, identity, tell)


def _stored_recipe(path: Path) -> dict[str, Any]:
    try:
        return recipes.read(path)
    except InputError as error:
        raise StorageError(
            f"{error} It belongs to the run in that folder: restore it, or choose another --out."
        ) from error


def fix_rounds(run: Run, rounds: int) -> None:
    """Write the number of rounds that a time limit became into recipe.yaml, so that the recipe re-runs to the same."""
    recipes.write(run.folder / RECIPE, replace(run.recipe, seconds_rounds=rounds))


# ---------------------------------------------------------------- checkpoints of rounds


def save_checkpoint(
    folder: Path, stage: str, number: int, arrays: Mapping[str, Array], meta: Mapping[str, Any]
) -> None:
    """Checkpoint after round `number`; others go only once this one was read back and verified."""
    path = _checkpoint(folder, stage, number)
    text = json.dumps(storage.plain(meta))
    storage.write_arrays(path, arrays, {"limbeck": text, "digest": storage.digest(arrays, text)})
    load_one(path)
    _drop_before(folder, stage, path)
    for later in _checkpoints(folder, stage):  # damaged, or this round would not have been played again
        if later > path:
            later.unlink()


def load_checkpoint(folder: Path, stage: str, tell: Tell) -> tuple[int, dict[str, Array], dict[str, Any]] | None:
    """The newest checkpoint that is whole: (round, arrays, meta). A damaged one is named and skipped."""
    for path in reversed(_checkpoints(folder, stage)):
        try:
            arrays, meta = load_one(path)
        except (InputError, StorageError) as error:
            tell("run", f"{path.name} is damaged and skipped, the one before it is used: {error}")
            continue
        _drop_before(folder, stage, path)
        return int(path.stem.rsplit("-", 1)[1]), arrays, meta
    return None


def _drop_before(folder: Path, stage: str, newest: Path) -> None:
    """Of `newest` and what came before it, KEEP stay."""
    for old in [path for path in _checkpoints(folder, stage) if path <= newest][:-KEEP]:
        old.unlink()


def load_one(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    arrays, meta = storage.read_arrays(path)
    text = str(meta.get("limbeck"))
    if meta.get("digest") != storage.digest(arrays, text):
        raise StorageError("it does not match its checksum.")
    values: dict[str, Any] = json.loads(text)
    return arrays, values


def _checkpoint(folder: Path, stage: str, number: int) -> Path:
    return folder / "checkpoints" / f"{stage}-{number:06d}.safetensors"


def _checkpoints(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / "checkpoints").glob(f"{stage}-[0-9]*.safetensors"))
