"""Trackers that do not answer, or were killed as they began: the run is not held back, and nothing is there twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck import storage
from limbeck.errors import StorageError
from limbeck.reporting import trackers
from limbeck.reporting.trackers import wandb_run


@pytest.mark.parametrize("first", ["pass", "os.close(0)"])
def test_a_process_that_does_not_end_holds_nothing_back(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that works on nor one that no longer reads."""
    program, there = tmp_path / "program.py", tmp_path / "there"
    program.write_text(f"import os, time\nos.read(0, 9)\n{first}\nopen({str(there)!r}, 'w')\ntime.sleep(60)\n")
    for name, value in {"PROGRAM": program, "WAIT": 0.2, "UPLOAD": 0.2}.items():
        monkeypatch.setattr(wandb_run, name, value)
    (folder := tmp_path / "tracking" / "wandb").mkdir(parents=True)
    feed, begun = wandb_run.begin("run", folder), time.monotonic()
    while not there.exists():
        time.sleep(0.01)
    with pytest.raises(StorageError, match=r"not done after 0\.2 seconds"):
        feed.finish(trackers.Log({}, {}, {}, []))
    feed.close()
    assert time.monotonic() < begun + 20


def test_wandb_keeps_the_id_of_a_run_that_was_killed_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is cleared with every begin, also of an offline one in between: the server's run stays the same."""
    (program := tmp_path / "program.py").write_text(
        "import json, sys\nhead = json.loads(sys.stdin.readline())\n"
        "open(head['folder'] + '/said', 'w').write(str(head['id']))\nsys.stdin.read()\n"
    )
    monkeypatch.setattr(wandb_run, "PROGRAM", program)
    (folder := tmp_path / "tracking" / "wandb").mkdir(parents=True)

    def id_of_a_run(mode: str) -> str:
        monkeypatch.setenv("WANDB_MODE", mode)
        wandb_run.begin("run", folder).close()
        return (folder / "said").read_text()

    def killed(_: Path) -> Path:
        raise KeyboardInterrupt

    first = id_of_a_run("online")
    with monkeypatch.context() as patch:
        patch.setattr(wandb_run, "cleared", lambda folder: killed(trackers.cleared(folder)))
        with pytest.raises(KeyboardInterrupt):
            id_of_a_run("online")
    assert [id_of_a_run(mode) for mode in ("online", "offline", "online")] == [first, "None", first]


def test_mlflow_s_end_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each request of the end may take: MLflow's own limits are a quarter of an hour."""
    pytest.importorskip("mlflow", reason="needs limbeck[track]")
    from limbeck.reporting.trackers import mlflow_store

    seen: list[str | None] = []

    class Client:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: seen.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    mlflow_store.StoredRun(Client(), "r", "").finish(trackers.Log({"a": 1.0}, {}, {}, [Path("x")]))
    assert seen == ["2"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2])
def test_mlflow_finds_a_run_again_that_was_killed_as_it_began(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run is created, and between that and the moment at which its id is written down."""
    mlflow = pytest.importorskip("mlflow", reason="needs limbeck[track]")
    from limbeck.reporting.trackers import mlflow_store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (folder := tmp_path / "mlflow").mkdir()
    mlflow_store.begin("run", folder).close()
    write, count = storage.write_json, []

    def killed(path: Path, value: object) -> None:
        count.append(path)
        if len(count) == at:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            mlflow_store.begin("run", folder)
    mlflow_store.begin("run", folder).close()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name("limbeck").experiment_id])) == 1
