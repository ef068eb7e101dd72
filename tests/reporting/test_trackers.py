"""TensorBoard, W&B and MLflow, each read back with the library itself."""

from __future__ import annotations

import doctest
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import reporting_samples as samples

from limbeck import settings, standalone, storage
from limbeck.errors import InputError
from limbeck.reporting import trackers
from limbeck.reporting.trackers import mlflow_store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of eight members."""
    folder = samples.write_run(tmp_path / "run", samples.partly(), samples.metrics())
    storage.write_manifest(folder)
    return folder


def test_the_log_holds_every_number_of_the_run(run: Path) -> None:
    log = trackers.log_of(run)
    losses = [p for p in log.points if p.name == "imitate/loss/mlp:64x64-s0"]
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert [(p.step, p.value) for p in losses] == [(r["env_steps"], r["loss"]) for r in rows]
    polish = [p.step for p in log.points if p.name == "polish/return_mean/mlp:4-s1"]
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


def test_examples_of_the_store() -> None:
    assert doctest.testmod(mlflow_store).failed == 0


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
    trackers.track(run, ["wandb"])
    (file,) = (run / "tracking" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
    history: list[dict[str, str]] = []
    summary: dict[str, str] = {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            history.append({"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item})
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = item.value_json
    losses = [(int(r["imitate/step"]), float(r["imitate/loss/mlp:64x64-s0"])) for r in history if "imitate/loss/mlp:64x64-s0" in r]  # fmt: skip
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert losses == [(r["env_steps"], pytest.approx(r["loss"])) for r in rows]
    assert float(summary["bill/env_steps"]) == samples.partly().bill.env_steps


def test_mlflow_keeps_a_run_in_its_database(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs limbeck[track]")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):  # written twice, kept once
        trackers.track(run, ["mlflow"])
    client = MlflowClient(tracking_uri=f"sqlite:///{(run / 'tracking' / 'mlflow' / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("limbeck")
    (kept,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(kept.info.run_id, "imitate/loss/mlp_64x64-s0")
    rows = [r for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]
    assert sorted((m.step, m.value) for m in history) == [(r["env_steps"], pytest.approx(r["loss"])) for r in rows]
    assert kept.data.params["task"] == "LunarLander-v3"
    assert kept.data.tags["headline"].startswith("The 484-number student")
    assert {file.path for file in client.list_artifacts(kept.info.run_id)} >= {"result.json", "recipe.yaml"}
