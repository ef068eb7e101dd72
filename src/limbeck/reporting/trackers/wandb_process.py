"""The process that writes a run of Weights & Biases: lines of JSON on standard input, see `wandb_run`.

It is a program of its own, without Limbeck: wandb's `finish` returns before its file is whole, only its teardown waits,
and a teardown in the caller's process would end the caller's own runs there.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any


def main() -> None:
    """First `{"name", "folder", "mode", "id"}`, then `{"line": [[name, step, value], ...]}` for each line, then `{"end": LOG}`.

    LOG has `Log`'s fields. Where it is null, or the input ends before it, the run did not end.
    """
    import wandb

    told = messages()
    head = next(told)
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
    )  # no machine, no source, no output of this process
    again = {"id": head["id"], "resume": "allow"} if head["id"] else {}
    run = wandb.init(
        project="limbeck", name=head["name"], dir=head["folder"], mode=head["mode"], settings=settings, **again
    )
    log = follow(run, told, run.starting_step)  # a step for each line: so many has the server already
    if log is not None:
        texts = {f"text/{name}": text for name, text in log["texts"].items()}
        config: Any = run.config  # its methods state no types
        config.update({**log["settings"], **texts}, allow_val_change=True)
        run.summary.update(log["finals"])
        artifact = wandb.Artifact("report", type="report")
        for file in log["files"]:
            artifact.add_file(file)
        run.log_artifact(artifact)
    run.finish(exit_code=0 if log is not None else 1)
    wandb.teardown()  # the file is whole, or what is in it was sent


def follow(run: Any, told: Iterator[Any], there: int) -> dict[str, Any] | None:
    """Log every line but the first `there`, against the steps of its own stage; what came at the end."""
    known: set[str] = set()
    for number, message in enumerate(told):
        if "end" in message:
            found: dict[str, Any] | None = message["end"]
            return found
        points = message["line"]
        stage, step = points[0][0].split("/")[0], points[0][1]
        for name in [name for name, _, _ in points if name not in known]:
            run.define_metric(name, step_metric=f"{stage}/step")
            known.add(name)
        if number >= there:
            run.log({f"{stage}/step": step, **{name: value for name, _, value in points}})
    return None


def messages() -> Iterator[Any]:
    """What comes in, read at once: who writes never waits for wandb, which may itself wait for a server."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        yield json.loads(line)


if __name__ == "__main__":
    main()
