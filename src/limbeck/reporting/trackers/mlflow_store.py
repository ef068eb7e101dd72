"""A run in MLflow: a database file, unless MLFLOW_TRACKING_URI names a server. MLflow 3 refuses its older folders of files.

A store that others share holds runs of the same name: only the run that this folder wrote earlier is ever replaced, by
the id kept beside it. What MLFLOW_TRACKING_URI says is never told, it may hold a password.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck import storage
from limbeck.errors import StorageError, printable
from limbeck.reporting.trackers import AGAIN, Log

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "limbeck"
WRITTEN = "run.json"  # the id of the run that an earlier call wrote
URI = "MLFLOW_TRACKING_URI"
BATCH = 1000  # metrics of one request, by MLflow's own limit


def write(log: Log, folder: Path) -> str:
    """Curves and final numbers as metrics, settings as parameters, verdicts as tags, the page and the result as artefacts."""
    os.environ.setdefault(
        "MLFLOW_DISABLE_TELEMETRY", "true"
    )  # read when mlflow is imported: it reports its use otherwise
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    own = folder.resolve()
    database = f"sqlite:///{own / 'mlflow.db'}"
    shared = os.environ.get(URI)
    try:
        client = MlflowClient(tracking_uri=shared or database)
        known = client.get_experiment_by_name(EXPERIMENT)
        place = None if shared else (own / "artifacts").as_uri()  # a shared store knows itself where its files belong
        experiment = (
            client.create_experiment(EXPERIMENT, artifact_location=place) if known is None else known.experiment_id
        )
        _forget(client, folder / WRITTEN)
        run: str = client.create_run(experiment, run_name=key(log.name)).info.run_id
        storage.write_json(folder / WRITTEN, {"run": run})
        _fill(client, run, log)
    except MlflowException as error:
        told = str(error).replace(shared.rstrip("/"), URI) if shared else str(error)
        raise StorageError(f"MLflow did not take the run: {printable(told, 400)}. {AGAIN}") from None  # it may tell the address  # fmt: skip
    if shared:
        return f"run {run} of experiment {EXPERIMENT} in the store that {URI} names"
    return f"{database} (mlflow ui --backend-store-uri {database})"


def _forget(client: MlflowClient, written: Path) -> None:
    """Delete the run that an earlier call wrote, where this store holds it."""
    from mlflow.exceptions import MlflowException

    if not written.is_file():
        return
    try:
        client.delete_run(storage.read_json(written)["run"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it went to another store, or was removed there for good
            raise


def _fill(client: MlflowClient, run: str, log: Log) -> None:
    from mlflow.entities import Metric, Param, RunTag

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


def key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, _ - . / and blanks, no part that begins with a dot.

    >>> key("proof/retention/mlp:16x16-s1"), key("../a")
    ('proof/retention/mlp_16x16-s1', '_./a')
    """
    return re.sub(r"(^|/)\.", r"\1_", re.sub(r"[^\w\-. /]", "_", name))[:250]
