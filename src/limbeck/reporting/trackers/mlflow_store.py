"""A run in MLflow: a database file, unless MLFLOW_TRACKING_URI names a server. MLflow 3 refuses its older folders of files.

A store that others share holds runs of the same name: only the run that this folder wrote earlier is ever replaced, by
the id kept beside it. What MLFLOW_TRACKING_URI says is never told, it may hold a password.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck import storage
from limbeck.errors import StorageError, printable
from limbeck.reporting.trackers import AGAIN, Line, Log

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "limbeck"
WRITTEN = "run.json"  # the id of the run that an earlier call wrote, and the mark that it was given before it had one
MARK = "limbeck.mark"  # tag of a run: what was created before a kill is found by it
URI = "MLFLOW_TRACKING_URI"
SOON = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}  # seconds; what is set stands
BATCH = 1000  # metrics of one request, by MLflow's own limit


class StoredRun:
    """A run in a store."""

    def __init__(self, client: MlflowClient, run: str, place: str) -> None:
        self.place = place
        self._client, self._run, self._over = client, run, False

    def add(self, lines: Sequence[Line]) -> None:
        """Every number as a metric, of this moment."""
        with _told(), _soon():
            self._log([(point.name, point.value, point.step) for line in lines for point in line])

    def finish(self, log: Log) -> None:
        """Final numbers as metrics, settings as parameters, verdicts as tags, the page and the result as artefacts."""
        from mlflow.entities import Param, RunTag

        with _told(), _soon():
            self._log([(name, value, 0) for name, value in log.finals.items()])
            params = [Param(key(k), v) for k, v in log.settings.items()]
            self._client.log_batch(self._run, params=params, tags=[RunTag(key(k), v) for k, v in log.texts.items()])
            for file in log.files:
                self._client.log_artifact(self._run, str(file))
            self._client.set_terminated(self._run)
            self._over = True

    def close(self) -> None:
        """A run that did not end shows as killed; continued, it is written anew."""
        if not self._over:
            with _told(), _soon():
                self._client.set_terminated(self._run, "KILLED")

    def _log(self, numbers: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key(name), value, now, step) for name, value, step in numbers]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[first : first + BATCH])


def begin(name: str, folder: Path) -> StoredRun:
    """A new run in the store; the one that this folder wrote there earlier is deleted."""
    os.environ.setdefault(
        "MLFLOW_DISABLE_TELEMETRY", "true"
    )  # read when mlflow is imported: it reports its use otherwise
    from mlflow import MlflowClient

    own = folder.resolve()
    database = f"sqlite:///{own / 'mlflow.db'}"
    shared = os.environ.get(URI)
    with _told(), _soon():
        client = MlflowClient(tracking_uri=shared or database)
        known = client.get_experiment_by_name(EXPERIMENT)
        place = None if shared else (own / "artifacts").as_uri()  # a shared store knows itself where its files belong
        experiment = (
            client.create_experiment(EXPERIMENT, artifact_location=place) if known is None else known.experiment_id
        )
        _forget(client, experiment, folder / WRITTEN)
        mark = {"mark": uuid.uuid4().hex}
        storage.write_json(folder / WRITTEN, mark)
        run: str = client.create_run(experiment, run_name=key(name), tags={MARK: mark["mark"]}).info.run_id
        storage.write_json(folder / WRITTEN, {"run": run, **mark})
    if shared:
        return StoredRun(client, run, f"run {run} of experiment {EXPERIMENT} in the store that {URI} names")
    return StoredRun(client, run, f"{database} (mlflow ui --backend-store-uri {database})")


@contextmanager
def _told() -> Iterator[None]:
    """What MLflow says when it fails, without the address, which may hold a password."""
    shared = os.environ.get(URI)
    try:
        yield
    except Exception as error:  # of MLflow, or of what it stores with
        told = str(error).replace(shared.rstrip("/"), URI) if shared else str(error)
        raise StorageError(f"MLflow did not take the run: {printable(told, 400)}. {AGAIN}") from None


@contextmanager
def _soon() -> Iterator[None]:
    """What is done while a run goes on fails within a minute where nobody answers; MLflow's own limits are a quarter of an hour."""
    added = [name for name in SOON if name not in os.environ]
    os.environ.update({name: SOON[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _forget(client: MlflowClient, experiment: str, written: Path) -> None:
    """Delete the run that an earlier call wrote, or was killed while it created, where this store holds it."""
    from mlflow.exceptions import MlflowException

    known = storage.read_table(written) if written.is_file() else {}
    if "run" in known:
        found = [str(known["run"])]
    elif "mark" in known:  # that hex digits alone make
        found = [one.info.run_id for one in client.search_runs([experiment], f"tags.`{MARK}` = '{known['mark']}'")]
    else:
        found = []
    for run in found:
        try:
            client.delete_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it went to another store, or was removed there for good
                raise


def key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, _ - . / and blanks, no part that begins with a dot.

    >>> key("proof/retention/mlp:16x16-s1"), key("../a")
    ('proof/retention/mlp_16x16-s1', '_./a')
    """
    return re.sub(r"(^|/)\.", r"\1_", re.sub(r"[^\w\-. /]", "_", name))[:250]
