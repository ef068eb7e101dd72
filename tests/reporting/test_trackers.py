"""TensorBoard, W&B and MLflow, each read back with the library itself."""

from __future__ import annotations

import doctest
import importlib.util
import os
import shutil
import struct
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reporting_samples as samples

from limbeck import settings, standalone, storage
from limbeck.errors import InputError, StorageError
from limbeck.reporting import trackers
from limbeck.reporting.trackers import mlflow_store, wandb_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of eight members."""
    folder = samples.write_run(tmp_path / "run", samples.partly(), samples.metrics())
    storage.write_manifest(folder)
    return folder


def test_the_log_holds_every_number_of_the_run(run: Path) -> None:
    log, lines = trackers.log_of(run), trackers.lines_of(storage.read_metrics(run))
    points = [point for line in lines for point in line]
    losses = [p for p in points if p.name == "imitate/loss/mlp:64x64-s0"]
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert [(p.step, p.value) for p in losses] == [(r["env_steps"], r["loss"]) for r in rows]
    polish = [p.step for p in points if p.name == "polish/return_mean/mlp:4-s1"]
    assert polish == [0, 5, 10, 15, 20]  # generations
    assert log.finals["bill/env_steps"] == samples.partly().bill.env_steps
    assert log.finals["proof/proved/mlp:64x64-s1"] == 1.0
    assert log.finals["proof/proved/mlp:16-s1"] == 0.0
    assert "proof/retention/linear-s1" not in log.finals  # not played
    assert "/home/" not in str(log.texts)


def test_unknown_trackers_and_missing_libraries_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        standalone.report(run, ["tensorbord"], lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "limbeck\[track\]"'):
        trackers.require(["wandb"])
    assert not (run / "tracking").exists()


def test_the_setting_takes_several() -> None:
    values = settings.with_options({"teacher": "t.zip", "env": "CartPole-v1"}, ["report.track=tensorboard,mlflow"])
    assert settings.recipe_from(values).report.track == ("tensorboard", "mlflow")


@pytest.mark.parametrize("module", [trackers, mlflow_store])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# ---------------------------------------------------------------- the libraries themselves


def test_tensorboard_reads_curves_and_verdicts(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs limbeck[track]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    trackers.track(run, ["tensorboard"])
    standalone.report(run, ["tensorboard"], lambda _, text: said.append(text))  # written twice, kept once
    folder = run / "tracking" / "tensorboard"
    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    loss = events.Scalars("imitate/loss/mlp:64x64-s0")
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert [e.step for e in loss] == [r["env_steps"] for r in rows]
    assert [e.value for e in loss] == pytest.approx([r["loss"] for r in rows])
    assert events.Scalars("bill/env_steps")[0].value == pytest.approx(samples.partly().bill.env_steps)
    texts = events.Tensors("headline/text_summary")[0].tensor_proto.string_val
    assert b"The 484-number student" in texts[0]
    assert "tensorboard --logdir" in said[-1]
    assert not storage.check_manifest(run)  # what was added is in it


def records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log (blocks of 32 KiB; checksum, length, kind) after a header of 7 bytes."""
    assert content[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_keeps_an_offline_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs limbeck[track]")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SERVICE", "of the caller")  # joining it fails
    standalone.report(run, ["wandb"], lambda *_: None)
    assert not storage.check_manifest(run), "the file was whole when the manifest was written"
    (file,) = (run / "tracking" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
    history: list[dict[str, str]] = []
    summary: dict[str, str] = {}
    kinds: set[str | None] = set()
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kinds.add(record.WhichOneof("record_type"))
        if record.HasField("history"):
            history.append({"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item})
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = item.value_json
    losses = [(int(r["imitate/step"]), float(r["imitate/loss/mlp:64x64-s0"])) for r in history if "imitate/loss/mlp:64x64-s0" in r]  # fmt: skip
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert losses == [(r["env_steps"], pytest.approx(r["loss"])) for r in rows]
    assert float(summary["bill/env_steps"]) == samples.partly().bill.env_steps
    assert kinds >= {"artifact", "exit"}, "all of it is there when the call returns"


def test_what_wandb_says_when_it_fails_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := run / "failing.py").write_text("""import os, sys
sys.exit(f"line 1\\nrefused {sorted(k + '=' + v for k, v in os.environ.items() if k.startswith('WANDB_'))}")""")
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SERVICE", "of the caller")
    monkeypatch.setattr(wandb_run, "PROGRAM", program)
    monkeypatch.setattr(trackers, "require", lambda names: None)  # it is not asked
    with pytest.raises(
        StorageError, match=r"take the run: refused \['WANDB_ERROR_REPORTING=false'\]\..* limbeck report RUN"
    ):
        trackers.track(run, ["wandb"])


@pytest.fixture(scope="module")
def mlflow() -> Any:
    return pytest.importorskip("mlflow", reason="needs limbeck[track]")


def kept(mlflow: Any, uri: str) -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name("limbeck").experiment_id]))


def test_mlflow_keeps_a_run_in_its_database(mlflow: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")  # so that it is put back
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    for _ in range(2):  # written twice, kept once
        trackers.track(run, ["mlflow"])
    uri = f"sqlite:///{(run / 'tracking' / 'mlflow' / 'mlflow.db').resolve()}"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true", "nothing leaves the machine"
    (told,) = kept(mlflow, uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(told.info.run_id, "imitate/loss/mlp_64x64-s0")
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert sorted((m.step, m.value) for m in history) == [(r["env_steps"], pytest.approx(r["loss"])) for r in rows]
    assert told.data.params["task"] == "LunarLander-v3"
    assert told.data.tags["headline"].startswith("The 484-number student")
    assert {file.path for file in client.list_artifacts(told.info.run_id)} >= {"result.json", "recipe.yaml"}
    assert told.info.artifact_uri.startswith((run / "tracking" / "mlflow" / "artifacts").resolve().as_uri())


def test_a_shared_store_keeps_the_runs_of_others(
    mlflow: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "colleague" / "run"  # the same name
    shutil.copytree(run, other)
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where MLflow itself puts the files of a bare database
    (theirs,) = [trackers.track(other, ["mlflow"])["mlflow"].split()[1]]
    for _ in range(2):
        place = trackers.track(run, ["mlflow"])["mlflow"]
    assert uri not in place
    runs = {told.info.run_id: told for told in kept(mlflow, uri)}
    assert set(runs) == {theirs, place.split()[1]}
    assert not any("/tracking/" in told.info.artifact_uri for told in runs.values()), "no run's folder is the store"
    storage.write_json(run / "tracking" / "mlflow" / "run.json", {"run": "f" * 32})  # of another store
    trackers.track(run, ["mlflow"])
    assert len(kept(mlflow, uri)) == 3


def test_a_password_of_the_store_is_never_told(mlflow: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:geheim@127.0.0.1:1/")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StorageError, match=r"MLflow did not take the run: .*MLFLOW_TRACKING_URI") as raised:
        trackers.track(run, ["mlflow"])
    assert "geheim" not in "".join(traceback.format_exception(raised.value))
