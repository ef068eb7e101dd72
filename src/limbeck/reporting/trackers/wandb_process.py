"""The process that writes a run of Weights & Biases: the log as JSON on standard input, see `wandb_run`.

It is a program of its own, without Limbeck: wandb's `finish` returns before its file is whole, only its teardown waits,
and a teardown in the caller's process would end the caller's own runs there.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import Any


def main(told: dict[str, Any]) -> None:
    """Write `{"folder", "mode", "log"}`, log as `Log`'s fields."""
    import wandb

    log = told["log"]
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
    )  # no machine, no source, no output of this process
    config = {**log["settings"], **{f"text/{name}": text for name, text in log["texts"].items()}}
    run = wandb.init(
        project="limbeck", name=log["name"], dir=told["folder"], mode=told["mode"], config=config, settings=settings
    )
    points = [(point["name"].split("/")[0], point) for point in log["points"]]
    for stage, point in {point["name"]: (stage, point) for stage, point in points}.values():
        run.define_metric(point["name"], step_metric=f"{stage}/step")
    for (stage, step), group in groupby(points, key=lambda p: (p[0], p[1]["step"])):
        run.log({f"{stage}/step": step, **{point["name"]: point["value"] for _, point in group}})
    run.summary.update(log["finals"])
    artifact = wandb.Artifact("report", type="report")
    for file in log["files"]:
        artifact.add_file(file)
    run.log_artifact(artifact)
    run.finish()
    wandb.teardown()  # the file is whole, or what is in it was sent


if __name__ == "__main__":
    main(json.load(sys.stdin))
