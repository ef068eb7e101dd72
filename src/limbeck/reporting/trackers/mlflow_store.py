"""A run in MLflow: a database file, unless MLFLOW_TRACKING_URI names a server. MLflow 3 refuses its older folders of files."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from limbeck.reporting.trackers import Log

EXPERIMENT = "limbeck"
BATCH = 1000  # metrics of one request, by MLflow's own limit


def write(log: Log, folder: Path) -> str:
    """Curves and final numbers as metrics, settings as parameters, verdicts as tags, the page and the result as artefacts."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    own = folder.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own / 'mlflow.db'}"
    place = (own / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT, artifact_location=place) if known is None else known.experiment_id
    for earlier in client.search_runs([experiment], filter_string=f"attributes.run_name = '{key(log.name)}'"):
        client.delete_run(earlier.info.run_id)
    run = client.create_run(experiment, run_name=key(log.name)).info.run_id
    now = int(1000 * time.time())
    metrics = [Metric(key(p.name), p.value, now, p.step) for p in log.points]
    metrics += [Metric(key(name), value, now, 0) for name, value in log.finals.items()]
    for begin in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[begin : begin + BATCH])
    client.log_batch(
        run, params=[Param(key(k), v) for k, v in log.settings.items()], tags=[RunTag(key(k), v) for k, v in log.texts.items()]
    )  # fmt: skip
    for file in log.files:
        client.log_artifact(run, str(file))
    client.set_terminated(run)
    return f"{uri} (mlflow ui --backend-store-uri {uri})"


def key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, _ - . / and blanks, no part that begins with a dot.

    >>> key("proof/retention/mlp:16x16-s1"), key("../a")
    ('proof/retention/mlp_16x16-s1', '_./a')
    """
    return re.sub(r"(^|/)\.", r"\1_", re.sub(r"[^\w\-. /]", "_", name))[:250]
