"""Finished folders looked at again: check their files, write their page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limbeck import exporters, reporting, storage
from limbeck.contracts import RunResult
from limbeck.errors import InputError, printable
from limbeck.exporters import CheckRow
from limbeck.runs import RECIPE, RESULT


def check(folder: Path) -> list[CheckRow]:
    """`limbeck check`: one artefact folder, or a run's own files and then all its artefacts."""
    if not folder.is_dir():
        raise InputError(
            f"no folder at {printable(folder)}. Give artifacts/MEMBER of a run, or the run's folder, such as runs/demo."
        )
    if not (folder / "artifacts").is_dir():
        return exporters.check(folder)
    if (folder / RECIPE).is_file():
        _check_run(folder)
    folders = sorted(path for path in (folder / "artifacts").iterdir() if path.is_dir())
    return [replace(row, note=f"{one.name}: {row.note}") for one in folders for row in exporters.check(one)]


def _check_run(run: Path) -> None:
    """Raise InputError where a file of the run is no longer what its manifest says."""
    if not (run / storage.MANIFEST).is_file():
        raise InputError(
            f"{printable(run)} has no {storage.MANIFEST}: the run did not finish. Run its command again, then check it."
        )
    changed = storage.check_manifest(run)
    if changed:
        raise InputError(
            f"{printable(run)}: {', '.join(map(printable, changed))} is no longer what the run wrote. Restore it, or run its command again elsewhere."
        )


def report(run: Path) -> Path:
    """`limbeck report`: the page of a finished run, written again."""
    finished(run)
    with storage.locked(run):
        page = reporting.write(run)
        storage.write_manifest(run)
    return page


def finished(run: Path) -> RunResult:
    """The result of a finished run."""
    if not (run / RESULT).is_file():
        raise InputError(
            f"{printable(run)} holds no {RESULT}. Give the folder of a run, or finish it by running its command again."
        )
    return reporting.load_result(run)
