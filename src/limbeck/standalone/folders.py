"""Finished folders looked at again: check their files, write their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck import reporting, storage
from limbeck.contracts import RunResult
from limbeck.errors import InputError, printable
from limbeck.reporting import trackers
from limbeck.runs import RECIPE, RESULT, Tell


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


def report(run: Path, to: Sequence[str], tell: Tell) -> Path:
    """`limbeck report`: the page of a finished run, written again, and the run for other tools to show."""
    trackers.require(to)
    finished(run)
    with storage.locked(run):
        page = reporting.write(run)
        for name, place in trackers.track(run, to).items():
            tell("report", f"{name}: {place}")
        storage.write_manifest(run)
    return page


def finished(run: Path) -> RunResult:
    """The result of a finished run."""
    if not (run / RESULT).is_file():
        raise InputError(
            f"{printable(run)} holds no {RESULT}. Give the folder of a run, or finish it by running its command again."
        )
    return reporting.load_result(run)
