"""A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

from limbeck.reporting.trackers import Log, cleared


def write(log: Log, folder: Path) -> str:
    """Curves against the steps of their own stage, final numbers in the summary, the page and the result as an artefact."""
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
    )  # no machine, no source, no output of this process
    config = {**log.settings, **{f"text/{name}": text for name, text in log.texts.items()}}
    run = wandb.init(
        project="limbeck", name=log.name, dir=str(cleared(folder)), mode=mode, config=config, settings=settings
    )
    try:
        for name in dict.fromkeys(point.name for point in log.points):
            run.define_metric(name, step_metric=f"{name.split('/')[0]}/step")
        for (stage, step), points in groupby(log.points, key=lambda p: (p.name.split("/")[0], p.step)):
            run.log({f"{stage}/step": step, **{point.name: point.value for point in points}})
        run.summary.update(dict(log.finals))
        artifact = wandb.Artifact("report", type="report")
        for file in log.files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)
    finally:
        run.finish()
    place = folder / "wandb"
    return f"{place} (wandb sync {place}/{'offline-run-*' if mode == 'offline' else '*'})"
