"""What the end-to-end tests share: small budgets, and what every finished run keeps.

Films are made by the tests of reporting/video.py; here only the run of the fixture `main` makes one, and it alone
emulates a microcontroller and fills the gallery.
"""

from pathlib import Path

import pytest
import yaml

import limbeck
from limbeck import cli, storage, tasks
from limbeck.contracts import RunResult
from limbeck.dataset import open_dataset
from limbeck.reporting import load_result

CARTPOLE = str(Path(__file__).parent / "fixtures" / "cartpole_ppo_sb3.zip")
FAST = ("collect.steps=256", "imitate.rounds=3", "imitate.gradient_steps=80", "imitate.batch=128", "race.rounds=1,2", "race.episodes=2",
        "race.final_episodes=4", "verify.episodes=8", "verify.random_episodes=40", "prove.max_episodes=40", "prove.bound_episodes=40",
        "polish.enabled=False", "export.golden_steps=64", "export.devices=", "report.gallery=off")  # fmt: skip
EVERYTHING = ("export.devices=cortex-m0", "report.gallery=few")  # what FAST leaves out of the report


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch, request):
    """In this process the command line must not claim signals, and only the main run makes a film."""
    monkeypatch.setattr(cli.signal, "signal", lambda *a: None)
    monkeypatch.setattr(tasks.watchdog, "hard_exit", False)
    monkeypatch.setattr(tasks.watchdog, "limit_seconds", 60.0)
    if "main" not in request.fixturenames:
        monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)


def no_film(teacher, student, task, seed, path, *rest, **names):
    storage.write_json(path.with_suffix(".json"), {"reason": "not filmed in this test"})


def small(teacher, env, out, students=("mlp:8@2", "linear"), options=(), **arguments):
    return limbeck.distill(teacher, env, list(students), out, options=[*FAST, *options], **arguments)


def weights(folder):
    """The bytes of every student's tensors, by name."""
    files = sorted((folder / "students").glob("*/policy.safetensors"))
    return {path.parent.name: [a.tobytes() for a in storage.read_arrays(path)[0].values()] for path in files}


def metrics(folder, stage):
    return [row for row in storage.read_metrics(folder) if row["stage"] == stage]


def assert_sound(folder, result, collection_steps):
    """What every finished run keeps: a bill that adds up, files that are there, a manifest that holds."""
    assert isinstance(result, RunResult)
    bill, recipe = result.bill, yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (
        bill.collection_steps
        == bill.teacher_queries
        == open_dataset(folder / "dataset", result.task).rows
        == collection_steps
    )
    assert bill.verify_steps > 0
    assert bill.race_steps > 0
    assert bill.proof_steps > 0
    assert bill.other_steps > 0  # golden sequences
    spent = [storage.read_json(path)["seconds"] for path in (folder / "records").glob("*.json")]
    assert {"video.json", "bounds.json"} <= {path.name for path in (folder / "records").glob("*.json")}
    assert bill.seconds > sum(spent)
    assert bill.peak_memory_bytes > 1e6
    parts = (
        bill.verify_steps,
        bill.collection_steps,
        bill.race_steps,
        bill.polish_steps,
        bill.proof_steps,
        bill.other_steps,
    )
    assert bill.env_steps == sum(parts)
    trained = sum(1 for row in metrics(folder, "imitate"))
    assert bill.gradient_steps == trained * recipe["imitate"]["gradient_steps"]
    assert load_result(folder) == result
    assert (folder / "report.html").stat().st_size > 10_000
    assert storage.check_manifest(folder) == []
    assert (
        {p.name for p in (folder / "artifacts").iterdir()} == {m.name for m in result.members} == set(weights(folder))
    )
