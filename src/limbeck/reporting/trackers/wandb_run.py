"""A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later.

Curves against the steps of their own stage, final numbers in the summary, the page and the result as an artefact. An
offline run is written anew when the run is continued. What a server was sent cannot be taken back: there the same run is
continued by its id, after as many lines as it has, which are the same lines, because a killed run repeats itself exactly.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from limbeck import storage
from limbeck.errors import StorageError, printable
from limbeck.reporting.trackers import AGAIN, Line, Log, cleared

PROGRAM = Path(__file__).with_name("wandb_process.py")
QUIET = {"WANDB_ERROR_REPORTING": "false"}  # its crashes would be reported to its makers
SERVICE = "WANDB_SERVICE"  # the caller's own service, which a child would join and which would not end with it
SENT = "wandb.json"  # beside the folder, which is cleared: the id of the run that a server has
WAIT = 30.0  # seconds for a process to end
UPLOAD = 300.0  # seconds for what a server has not taken yet; a run is not held back for longer


class PipedRun:
    """A process of its own that writes the run, and the pipe to it."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], place: str) -> None:
        self.place = place
        self._process, self._errors = process, errors

    def add(self, lines: Sequence[Line]) -> None:
        if self._process.poll() is not None:
            raise self._failed()
        self.send([{"line": [[point.name, point.step, point.value] for point in line]} for line in lines])

    def finish(self, log: Log) -> None:
        """Returns when the files are whole, or what is in them was sent."""
        self.send([{"end": asdict(log)}])
        if self._ended(UPLOAD) != 0:
            raise self._failed()

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(StorageError):  # it ended meanwhile
                self.send([{"end": None}])
        with contextlib.suppress(OSError):  # what an ended process did not read
            self._input.close()
        with contextlib.suppress(StorageError):  # it was killed: what was added stays
            self._ended(WAIT)
        self._errors.close()

    def send(self, messages: Sequence[Any]) -> None:
        """One line of JSON for each."""
        try:
            self._input.writelines(json.dumps(message, default=str) + "\n" for message in messages)
            self._input.flush()
        except OSError:  # the reader is gone
            self._ended(WAIT)
            raise self._failed() from None

    def _ended(self, seconds: float) -> int:
        """The exit status; a process that takes longer is killed, and said to be."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise StorageError(f"Weights & Biases was not done after {seconds:g} seconds. {AGAIN}") from None

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _failed(self) -> StorageError:
        self._errors.seek(0)
        last = self._errors.read().strip().rpartition("\n")[2]
        why = printable(last or f"exit status {self._process.returncode}", 400)
        return StorageError(f"Weights & Biases did not take the run: {why}. {AGAIN}")


def begin(name: str, folder: Path) -> PipedRun:
    """Start the process; the offline run that lies here is replaced."""
    mode = os.environ.get("WANDB_MODE", "offline")
    with _alone(folder.with_name("wandb.lock")) as lock:
        sent = _id(folder.with_name(SENT)) if mode == "online" else None
        cleared(folder)
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed by the feed
        process = subprocess.Popen(  # noqa: S603  # this interpreter, this package's file
            [sys.executable, "-P", str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            text=True, encoding="utf-8", pass_fds=[lock.fileno()],  # held as long as it lives
            env=QUIET | {key: value for key, value in os.environ.items() if key != SERVICE},
            start_new_session=True,  # Ctrl-C is for the run, which ends this process in its own time
        )  # fmt: skip
    place = folder / "wandb"
    run = PipedRun(process, errors, f"{place} (wandb sync {place}/{'offline-run-*' if mode == 'offline' else '*'})")
    run.send([{"name": name, "folder": str(folder.resolve()), "mode": mode, "id": sent}])
    return run


def _id(known: Path) -> str:
    """The id under which a server has this run, or will have it: written down before anything is sent."""
    if not known.is_file():
        storage.write_json(known, {"id": uuid.uuid4().hex[:12]})
    return str(storage.read_table(known)["id"])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[str]]:
    """The lock of the process that writes here: that of a run that was killed may be at its last lines still."""
    with path.open("a") as file:
        until = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StorageError(f"W&B still writes to {path.parent} for an earlier run. {AGAIN}") from None
                time.sleep(0.1)
        yield file
