"""A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later.

Curves against the steps of their own stage, final numbers in the summary, the page and the result as an artefact.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from limbeck.errors import StorageError, printable
from limbeck.reporting.trackers import AGAIN, Log, cleared

PROGRAM = Path(__file__).with_name("wandb_process.py")
QUIET = {"WANDB_ERROR_REPORTING": "false"}  # its crashes would be reported to its makers
SERVICE = "WANDB_SERVICE"  # the caller's own service, which a child would join and which would not end with it


def write(log: Log, folder: Path) -> str:
    """Write it in a process of its own, which ends when the files are whole."""
    mode = os.environ.get("WANDB_MODE", "offline")
    told = json.dumps({"folder": str(cleared(folder).resolve()), "mode": mode, "log": asdict(log)}, default=str)
    done = subprocess.run(  # noqa: S603  # this interpreter, this package's file
        [sys.executable, "-P", str(PROGRAM)], input=told, capture_output=True, text=True, encoding="utf-8",
        env=QUIET | {key: value for key, value in os.environ.items() if key != SERVICE},
    )  # fmt: skip
    if done.returncode != 0:
        why = printable(done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}", 400)
        raise StorageError(f"Weights & Biases did not take the run: {why}. {AGAIN}")
    place = folder / "wandb"
    return f"{place} (wandb sync {place}/{'offline-run-*' if mode == 'offline' else '*'})"
