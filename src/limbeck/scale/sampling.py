"""The study: who proposes candidates and remembers what became of them. The only file that imports Optuna.

Every call is made under the search's own lock (`claims.held`), so trials are numbered without gaps and no two
processes are asked the same. The sampler is made anew for every question from a counted seed: what it proposes is a
function of the finished trials and the number of the question, however often the search was stopped in between.
"""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck import seeding
from limbeck.errors import StorageError, missing_library, printable
from limbeck.scale.asked import SAMPLERS

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
NAME = "limbeck"
State = Literal["waiting", "running", "complete", "refused", "failed"]
_STATES: dict[str, State] = {
    "WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete", "PRUNED": "refused", "FAIL": "failed",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One trial as the study holds it."""

    number: int
    state: State
    values: tuple[float, ...]  # bytes, return; () before the end
    params: Mapping[str, Any]
    attributes: Mapping[str, Any]


class Question:
    """A trial that is being drawn: each name is asked once, and the sampler answers."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.number = trial.number

    def choice(self, name: str, options: Sequence[str]) -> str:
        value: str = self._trial.suggest_categorical(name, list(options))
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        return self._trial.suggest_int(name, low, high)

    def real(self, name: str, low: float, high: float) -> float:
        return self._trial.suggest_float(name, low, high, log=True)


def refuse_unfit(storage: str, folder: Path) -> None:
    """A data base that the study could not be kept in, told before anything is played or made. It is only read.

    `folder` is the search's own, which is made later; a data base may lie in it."""
    if storage == "journal":
        return
    path = Path(storage.removeprefix("sqlite:///"))
    then = "Allowed: sqlite:///FILE, FILE new or a study of a search, in a folder that is there and may be written to."
    if path.is_dir():
        raise StorageError(f"storage {printable(storage)}: a folder. {then}")
    if not path.parent.is_dir() and path.parent.resolve() != folder.resolve():
        what = "a file" if path.parent.exists() else "no folder"
        raise StorageError(f"storage {printable(storage)}: {printable(path.parent)} is {what}. {then}")
    closed = next((p for p in (path, path.parent) if p.exists() and not os.access(p, os.W_OK)), None)
    if closed is not None:
        raise StorageError(f"storage {printable(storage)}: {printable(closed)} may not be written to. {then}")
    if path.exists() and (why := _foreign(path)):
        raise StorageError(f"storage {printable(storage)}: {why}. {then}")


def _foreign(path: Path) -> str:
    """Why a file is no data base of Optuna's, or ""; an empty one may become one."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            sound = base.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return str(error)
    if sound != "ok":
        return f"damaged, {printable(sound)}"
    return "it holds other tables than a study" if tables and "studies" not in tables else ""


class Book:
    """The study on disk."""

    def __init__(self, folder: Path, storage: str, sampler: str, population: int, seed: int) -> None:
        self._optuna = _library()
        self._sampler, self._population, self._seed = sampler, population, seed
        self._journal = folder / JOURNAL if storage == "journal" else None
        self._where = str(self._journal or storage)
        with self._faults():
            self._mend()
            self._refuse_damaged()
            self._study = self._optuna.create_study(
                storage=self._storage(storage), study_name=NAME, load_if_exists=True, directions=["minimize", "maximize"],
                sampler=self._optuna.samplers.RandomSampler(),
            )  # fmt: skip

    def trials(self) -> list[Trial]:
        """All trials in the order they were asked."""
        with self._faults():
            found = self._study.get_trials(deepcopy=False)
            return [
                Trial(t.number, _STATES[t.state.name], tuple(t.values or ()), dict(t.params), dict(t.user_attrs))
                for t in found
            ]

    def ask(self, fixed: Mapping[str, Any]) -> Question:
        """A new trial; parameters named in `fixed` are answered so."""
        with self._faults():
            self._mend()
            asked = sum(t.state != "failed" for t in self.trials())
            self._study.sampler = self._sampler_for(asked)
            if fixed:
                self._study.enqueue_trial(dict(fixed))
            return Question(self._study.ask())

    def drop_strays(self, known: set[int]) -> None:
        """Fail what a killed process had asked for and not begun: open trials that no pass knows."""
        with self._faults():
            self._mend()
            for trial in self.trials():
                if trial.state == "waiting":
                    self._study.ask()  # the oldest that waits; it runs now
                if trial.state in ("waiting", "running") and trial.number not in known:
                    self.end(trial.number, "failed")

    def end(self, number: int, how: Literal["refused", "failed"]) -> None:
        """Close a trial without values: refused before training, or failed."""
        states = self._optuna.trial.TrialState
        with self._faults():
            self._study.tell(number, state=states.PRUNED if how == "refused" else states.FAIL)

    def tell(self, number: int, size_bytes: int, mean_return: float) -> None:
        """Close a trial with what was found; once told, it stays so."""
        with self._faults():
            self._study.tell(number, [float(size_bytes), mean_return], skip_if_finished=True)

    def _sampler_for(self, asked: int) -> optuna.samplers.BaseSampler:
        seed = int(seeding.generator(self._seed, "search", asked).integers(2**32))
        samplers = self._optuna.samplers
        if self._sampler == "TPESampler":
            return samplers.TPESampler(n_startup_trials=2 * self._population, seed=seed)
        if self._sampler == "NSGAIISampler":
            return samplers.NSGAIISampler(population_size=max(2, self._population), seed=seed)
        assert self._sampler in SAMPLERS
        return samplers.RandomSampler(seed=seed)

    def _storage(self, storage: str) -> optuna.storages.BaseStorage:
        if self._journal is None:
            return self._optuna.storages.RDBStorage(storage)
        journal = self._optuna.storages.journal
        # every call is made under the search's lock already, and Optuna's own lock outlives a killed process by 30 s
        return self._optuna.storages.JournalStorage(journal.JournalFileBackend(str(self._journal), _NoLock()))

    def _mend(self) -> None:
        """Cut a line that a kill or a full disk left unfinished: Optuna reads nothing behind one."""
        if self._journal is None or not self._journal.exists():
            return
        content = self._journal.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._journal.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def _refuse_damaged(self) -> None:
        """A line of the journal that is JSON and no entry, which Optuna meets with a trace."""
        if self._journal is None or not self._journal.exists():
            return
        for number, line in enumerate(self._journal.read_bytes().splitlines(), 1):
            entry = json.loads(line)
            if not (isinstance(entry, dict) and "op_code" in entry):
                raise StorageError(
                    f"{printable(self._where)} is damaged: line {number} is no entry of a study. Restore it, or choose another --out."
                )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What disks and data bases raise, as a StorageError."""
        import sqlalchemy.exc

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                yield
        except (OSError, sqlalchemy.exc.SQLAlchemyError, self._optuna.exceptions.StorageInternalError) as error:
            first = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise StorageError(
                f"the study in {printable(self._where)} cannot be read or written: {first}. Mend it (space, rights), then run the same command again."
            ) from error
        except ValueError as error:
            if "Invalid log format" not in str(error) and not isinstance(error, (json.JSONDecodeError, UnicodeError)):
                raise
            raise StorageError(
                f"{printable(self._where)} is damaged: {printable(error)}. Restore it, or choose another --out."
            ) from error


class _NoLock:
    """Optuna's place for a lock, where the search holds one already."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _library() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise missing_library("optuna", "search", "limbeck search") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
