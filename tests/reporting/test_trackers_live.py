"""Trackers while the run goes on: read with the real libraries in the middle, and at the end equal to a rewrite."""

from __future__ import annotations

import contextlib
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import reporting_samples as samples
import yaml
from cli_cases import fingerprint, killed_at, students, tiny
from end_to_end_cases import no_film

from limbeck import pipeline, runs, storage, tasks
from limbeck.contracts import RunResult
from limbeck.errors import StorageError
from limbeck.reporting import trackers
from limbeck.reporting.trackers import live
from limbeck.settings import Recipe

SHORT = {
    "polish": {"generations": 2, "pairs": 1, "episodes": 1, "validation_episodes": 2}, "report": {"gallery": "off"},
    "prove": {"max_episodes": 10, "bound_episodes": 10, "retain": 0.5}, "export": {"targets": ["numpy"]}, "students": ["mlp:2", "linear"],
}  # fmt: skip
Tell = Callable[[str, str], None]


def distilled(recipe: Path, folder: Path, tell: Tell, *options: str) -> RunResult:
    """A run in this process, telling this test what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.reporting.side_by_side", no_film)
        patch.setattr(tasks.watchdog, "hard_exit", False)
        patch.setattr(tasks.watchdog, "limit_seconds", 60.0)
        values = yaml.safe_load(recipe.read_text())
        return pipeline.distill(values, options, folder, teacher_object=None, env_object=None, tell=tell)


def tracked(folder: Path, **changes: Any) -> Path:
    return tiny(folder, **{**SHORT, **changes, "report": {"gallery": "off", "track": ["tensorboard"]}})


def told(run: Path) -> list[trackers.Point]:
    return [point for line in trackers.lines_of(storage.read_metrics(run)) for point in line]


def single(value: float) -> float:
    """As float32, in which TensorBoard keeps numbers."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


# ---------------------------------------------------------------- TensorBoard and a whole run


def events(run: Path) -> list[Any]:
    """Every event of the one file, but for its time."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (run / "tracking" / "tensorboard").iterdir()
    found = list(EventFileLoader(str(file)).Load())
    for event in found:
        event.ClearField("wall_time")
    return found


def scalars(run: Path) -> list[tuple[str, int, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    return [
        (value.tag, event.step, float(make_ndarray(value.tensor)))
        for event in events(run) for value in event.summary.value if value.metadata.plugin_data.plugin_name == "scalars"
    ]  # fmt: skip


def test_a_run_that_was_killed_goes_on_before_the_eyes_and_ends_as_its_files_say(tmp_path: Path) -> None:
    """Killed where a round's lines are appended and its checkpoint is not: those lines are told again, not twice."""
    pytest.importorskip("tensorboard", reason="needs limbeck[track]")
    recipe, run = tracked(tmp_path), tmp_path / "run"
    killed = killed_at("before:checkpoints/round-000003:1", "distill", recipe, "--out", run, filmed=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "tensorboard, as it goes: " in killed.stderr
    assert scalars(run) == [(p.name, p.step, single(p.value)) for p in told(run)] != []
    assert max(row["round"] for row in storage.read_metrics(run)) == 3
    seen: list[int] = []

    def tell(stage: str, text: str) -> None:
        if stage in ("imitate", "polish") and ("  members  " in text or "generation" in text or "loss" in text):
            found = scalars(run)
            assert found == [(p.name, p.step, single(p.value)) for p in told(run)], text
            seen.append(len(found))

    distilled(recipe, run, tell)
    assert len(seen) >= 4, "two rounds and two polished members"
    assert seen == sorted(set(seen)), "every time there was more to see"
    ended = events(run)
    assert [
        s for s in scalars(run) if not s[0].startswith(("member/", "proof/", "latency/", "bill/", "evaluation/"))
    ] == [(p.name, p.step, single(p.value)) for p in told(run)]
    trackers.track(run, ["tensorboard"])
    assert ended == events(run)
    assert not storage.check_manifest(run)


@pytest.mark.slow
def test_tracking_changes_nothing_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs limbeck[track]")
    recipe = tracked(tmp_path)
    for name, options in {"with": (), "without": ("report.track=",)}.items():
        distilled(recipe, tmp_path / name, lambda *_: None, *options)
    left, right = (fingerprint(tmp_path / name) for name in ("with", "without"))
    assert students(tmp_path / "with") == students(tmp_path / "without") != {}
    differ = {name for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
    assert {name for name in differ if not name.startswith("tracking/")} == {"recipe.yaml"}


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond 400 bytes; Python ignores the signal and gets EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_tracker_and_not_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs limbeck[track]")
    run, said = finished(tmp_path), []
    with live.following(run, ["tensorboard"], lambda *words: said.append(words)) as follower:
        follower.added([])
        with full_disk():
            follower.added(samples.metrics())
            follower.added(samples.metrics())
        follower.finished()
    assert [text.split(":")[0] for _, text in said] == ["tensorboard, as it goes", "tensorboard is given nothing more"]
    assert "File too large" in said[1][1]
    assert said[1][1].endswith("limbeck report RUN --to NAME writes it there.")
    trackers.track(run, ["tensorboard"])
    assert "bill/env_steps" in {name for name, _, _ in scalars(run)}


# ---------------------------------------------------------------- faults of any library


def finished(folder: Path) -> Path:
    """A finished run whose curves are not written yet."""
    run = samples.write_run(folder / "run", samples.partly(), [])
    storage.write_manifest(run)
    return run


class Faulty:
    """A library that fails when it is asked to `fails`."""

    place = "somewhere"

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self._ask("begin")

    def _ask(self, what: str) -> None:
        if what == self.fails:
            raise ZeroDivisionError(f"{what}\nbroke")

    def add(self, lines: Sequence[trackers.Line]) -> None:
        self._ask("add")

    def finish(self, log: trackers.Log) -> None:
        self._ask("finish")

    def close(self) -> None:
        self._ask("close")


@pytest.mark.parametrize("fails", ["begin", "add", "finish", "close"])
def test_a_library_that_fails_is_told_once_and_the_others_go_on(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = finished(tmp_path), []
    monkeypatch.setattr(live, "begin", lambda _, name: Faulty(fails if name == "wandb" else ""))
    with live.following(run, ["wandb", "mlflow"], lambda *words: said.append(words)) as follower:
        for _ in range(3):
            follower.added(samples.metrics())
        follower.finished()
    broken = [text for _, text in said if "nothing more" in text]
    assert broken == [f"wandb is given nothing more: ZeroDivisionError: {fails}\\nbroke. {trackers.AGAIN}"]
    assert "mlflow: somewhere" in [text for _, text in said]


def test_a_result_that_cannot_be_told_ends_the_trackers_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = finished(tmp_path), []
    monkeypatch.setattr(live, "begin", lambda *_: Faulty(""))
    with live.following(run, ["wandb", "mlflow"], lambda *words: said.append(words)) as follower:
        (run / "result.json").write_text("{")
        follower.finished()
    assert [text.partition(":")[0] for _, text in said] == [
        "wandb is given nothing more",
        "mlflow is given nothing more",
    ]


def test_without_trackers_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("begin", "log_of", "lines_of"):
        monkeypatch.setattr(live, name, None)
    with live.following(tmp_path / "none", [], pytest.fail) as follower:
        follower.added(samples.metrics())
        follower.dropped()
        follower.finished()


# ---------------------------------------------------------------- W&B and MLflow


def opened(run: Path, follower: runs.Follower) -> runs.Run:
    return runs.Run(run, Recipe("t.zip", env="CartPole-v1"), {}, lambda *_: None, follower)


def followed(run: Path, name: str, look: Callable[[], Any]) -> list[Any]:
    """A run that adds lines, loses the last ones, adds them again and ends; what `look` saw after each step."""
    rows, seen = samples.metrics(), []
    half, third = len(rows) // 2, len(rows) // 3
    with live.following(run, [name], lambda *_: None) as follower:
        one = opened(run, follower)
        one.add_metrics(rows[:half])
        seen.append(look())
        kept = [storage.plain(row) for row in rows[:third]]
        one.drop_metrics(lambda row: row not in kept)
        one.add_metrics(rows[third:half])
        one.add_metrics(rows[half:])
        seen.append(look())
        storage.write_manifest(run)
        follower.finished()
        seen.append(look())
    return seen


@pytest.mark.slow
def test_mlflow_grows_and_ends_as_its_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs limbeck[track]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = finished(tmp_path)
    uri = f"sqlite:///{(run / 'tracking' / 'mlflow' / 'mlflow.db').resolve()}"

    def look() -> tuple[str, dict[str, Any]]:
        client = mlflow.MlflowClient(tracking_uri=uri)
        (kept,) = client.search_runs([client.get_experiment_by_name("limbeck").experiment_id])
        curves = {
            name: sorted((m.step, m.value) for m in client.get_metric_history(kept.info.run_id, name))
            for name in kept.data.metrics
        }
        files = {file.path for file in client.list_artifacts(kept.info.run_id)}
        return kept.info.status, {**curves, "params": kept.data.params, "files": files, "headline": kept.data.tags.get("headline")}  # fmt: skip

    half, whole, ended = followed(run, "mlflow", look)
    name = "imitate/loss/mlp_64x64-s0"
    rows = [(r["env_steps"], r["loss"]) for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]  # fmt: skip
    assert 0 < len(half[1][name]) < len(whole[1][name]) == len(rows)
    assert whole[1][name] == rows
    assert (half[0], whole[0], ended[0]) == ("RUNNING", "RUNNING", "FINISHED")
    trackers.track(run, ["mlflow"])
    assert look() == ended
    with live.following(run, ["mlflow"], lambda *_: None) as follower:  # continued and interrupted
        follower.added([])
    assert look()[0] == "KILLED"


@pytest.mark.slow
def test_wandb_grows_and_ends_as_its_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs limbeck[track]")
    from test_trackers import records
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = finished(tmp_path)

    def look() -> dict[str, Any]:
        """What the file holds of it now."""
        (file,) = (run / "tracking" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
        found: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "exit": None}
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                found["history"].append({k: v for k, v in row.items() if k not in ("_runtime", "_timestamp")})
            for item in record.summary.update:
                found["summary"]["/".join(item.nested_key) or item.key] = item.value_json
            for item in record.config.update:
                found["config"]["/".join(item.nested_key) or item.key] = item.value_json
            if record.HasField("exit"):
                found["exit"] = record.exit.exit_code
        for key in [key for key in found["summary"] if key.split("/")[0] in ("_runtime", "_timestamp", "_wandb")]:
            del found["summary"][key]
        found["config"].pop("_wandb", None)
        return found

    def grown() -> dict[str, Any]:
        """The same as soon as wandb's own process has written what there is."""
        lines, until = len(trackers.lines_of(storage.read_metrics(run))), time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(ValueError):  # no file yet
                if len((found := look())["history"]) >= lines:
                    return found
            time.sleep(0.1)
        pytest.fail(f"no {lines} lines after 30 seconds")

    half, whole, ended = followed(run, "wandb", grown)
    steps = [float(row["imitate/step"]) for row in whole["history"] if "imitate/loss/mlp:64x64-s0" in row]
    assert steps == [r["env_steps"] for r in samples.metrics() if r["stage"] == "imitate" and r["member"] == "mlp:64x64-s0"]  # fmt: skip
    assert len(half["history"]) < len(whole["history"])
    assert whole["history"] == ended["history"]
    assert (half["exit"], whole["exit"], ended["exit"]) == (None, None, 0)
    trackers.track(run, ["wandb"])
    assert look() == ended
    with live.following(run, ["wandb"], lambda *_: None) as follower:
        follower.added([])
    assert look()["exit"] == 1
    assert look()["history"] == ended["history"]


def test_wandb_waits_for_the_process_of_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.reporting.trackers import wandb_run

    (program := tmp_path / "program.py").write_text("import sys\nfor line in sys.stdin:\n    pass\n")
    monkeypatch.setattr(wandb_run, "PROGRAM", program)
    monkeypatch.setattr(wandb_run, "WAIT", 0.3)
    (folder := tmp_path / "tracking" / "wandb").mkdir(parents=True)
    first = wandb_run.begin("run", folder)
    with pytest.raises(StorageError, match="W&B still writes to"):
        wandb_run.begin("run", folder)
    monkeypatch.setattr(wandb_run, "WAIT", 10.0)
    first.close()
    wandb_run.begin("run", folder).close()
