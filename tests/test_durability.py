"""A run stopped anywhere, in any way, ends as if it had never been stopped: real processes, real signals, real files."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_cases import (
    Answer,
    caller,
    command,
    environment,
    fingerprint,
    hashes,
    killed_at,
    last_line,
    limbeck,
    refusal,
    students,
    tiny,
)

from limbeck import recipes, storage

Call = Callable[..., Answer]
KILLED = -signal.SIGKILL
POINTS = [  # in the order in which a run passes them
    "torn:run.json:1",
    "before:dataset/CartPole-v1/round-00001:1",
    "play:2",  # in the race after round 2
    "torn:checkpoints/round-000002:1",
    "before:checkpoints/polish-mlp-2-s0-000002:1",
    "after:policy.h:1",  # an artefact half written
    "after:proofs/returns.json:1",
    "before:records/prove-mlp-2-s0:1",
    "before:report.html:1",
]
MORE_POINTS = [
    "before:recipe.yaml:1",
    "torn:records/verify:1",
    "after:dataset/CartPole-v1/round-00000:1",
    "before:checkpoints/round-000000:1",
    "after:checkpoints/round-000003:1",
    "play:1",
    "before:records/choice:1",
    "play:3",
    "after:checkpoints/polish-mlp-2-s0-000003:1",
    "torn:students/linear-s0/policy.safetensors:1",
    "before:policy.onnx:1",
    "before:records/export-linear-s0:1",
    "before:records/bounds:1",
    "play:4",
    "before:records/latency-mlp-2-s0:1",
    "after:records/prove-linear-s0:1",
    "torn:result.json:1",
    "after:video.mp4:1",
    "before:video.json:1",
    "torn:manifest.json:1",
]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = limbeck("distill", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert list((folder / "checkpoints").glob("polish-mlp-2-s0-*")), "the case must polish, or it tests less"
    folder.with_suffix(".table").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed after the checkpoint of its fourth round of five."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert killed_at("after:checkpoints/round-000003:1", "distill", recipe, "--out", folder).returncode == KILLED
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "run"))


def check_same(folder: Path, undisturbed: Path) -> None:
    """The same files with the same content; a metrics line cut by a kill may lie beside them."""
    found = fingerprint(folder)
    found.pop("metrics.cut", None)
    assert found == fingerprint(undisturbed)
    assert not [p for p in folder.rglob("*") if storage.is_aside(p) or p.name == storage.PROBE]
    assert storage.check_manifest(folder) == []


# ---------------------------------------------------------------- SIGKILL


def kill_and_continue(points: list[str], recipe: Path, folder: Path) -> None:
    for point in points:
        killed = killed_at(point, "distill", recipe, "--out", folder)
        assert killed.returncode == KILLED, (point, killed.stderr)
    done = limbeck("distill", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr


def test_killed_at_every_stage_it_ends_the_same(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    kill_and_continue(POINTS, recipe, tmp_path / "run")
    check_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_killed_at_many_more_points(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    kill_and_continue(MORE_POINTS, recipe, tmp_path / "run")
    check_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("writes", [15, 16, 19])  # one export is a dozen files, done whole or again
def test_killed_every_few_writes(writes: int, recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(60):
        if killed_at(f"write:{writes}", "distill", recipe, "--out", folder).returncode == 0:
            break
    else:
        pytest.fail("sixty processes did not bring the run to its end")
    check_same(folder, undisturbed)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read progress until a line holds `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the run ended without saying {text!r}")


def test_killed_from_outside_when_it_says_where_it_is(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for line in ("round 3/5", "generation 1/3"):
        process = start("distill", recipe, "--out", folder)
        wait_for(process, line)
        process.kill()
        process.communicate()
        assert process.returncode == KILLED
    done = limbeck("distill", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "continuing after round 5 of 5" in done.stderr
    check_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_until_it_ends(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(7)
    for attempt in range(60):
        process = start("distill", recipe, "--out", folder)
        try:
            process.communicate(timeout=moments.uniform(1.5, 3.5 + 0.1 * attempt))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == KILLED
    assert process.returncode == 0
    check_same(folder, undisturbed)


# ---------------------------------------------------------------- asked to stop


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_asked_to_stop_it_says_how_to_continue(
    sent: signal.Signals, code: int, word: str, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start("distill", recipe, "--out", tmp_path / "run")
    wait_for(process, "round 2/5")
    begin = time.monotonic()
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - begin < 10
    assert stdout == ""
    assert "Traceback" not in stderr
    assert last_line(stderr).startswith(f"limbeck: {word}. ")
    assert "run the same command again to continue" in last_line(stderr)
    if sent == signal.SIGTERM:
        return  # how it continues is the same
    done = limbeck("distill", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "continuing after round" in done.stderr
    check_same(tmp_path / "run", undisturbed)


def test_a_finished_run_is_not_done_again(recipe: Path, undisturbed: Path) -> None:
    before = hashes(undisturbed)
    done = limbeck("distill", recipe, "--out", undisturbed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == undisturbed.with_suffix(".table").read_text() != ""
    assert hashes(undisturbed) == before
    assert not [word for word in ("round 1/5", "generation", "playing", "filming") if word in done.stderr]


# ---------------------------------------------------------------- damage


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("where", ["weights", "counters"])
def test_a_damaged_newest_checkpoint_falls_back(
    where: str, recipe: Path, stopped: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = copied(stopped, tmp_path)
    newest = folder / "checkpoints" / "round-000003.safetensors"
    flip(newest, -2 if where == "weights" else newest.read_bytes().index(b"collection_steps") + 20)
    done = limbeck("distill", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "round-000003.safetensors is damaged and skipped" in done.stderr
    assert "continuing after round 3 of 5" in done.stderr
    check_same(folder, undisturbed)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_shard_is_named(damage: str, recipe: Path, stopped: Path, tmp_path: Path, call: Call) -> None:
    folder = copied(stopped, tmp_path)
    shard = folder / "dataset" / "CartPole-v1" / "round-00002.safetensors"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "flipped":
        flip(shard, -1)
    else:
        shard.unlink()
    before = hashes(folder)
    line = refusal(call("distill", recipe, "--out", folder), 5)
    assert ("lacks round 2" if damage == "gone" else f"{shard} is damaged") in line
    assert "Restore it" in line
    before.pop("checkpoints/round-000001.safetensors")  # the kill came before this outdated one was removed
    assert hashes(folder) == before


# ---------------------------------------------------------------- the recipe in the folder


def test_the_resolved_recipe_runs_to_the_same_students(undisturbed: Path, tmp_path: Path) -> None:
    done = limbeck("distill", undisturbed / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "run", undisturbed)


def test_seconds_become_rounds_that_stay(tmp_path: Path) -> None:
    """The number of rounds is in recipe.yaml from the moment it is known, for the resumed run and for the recipe's."""
    recipe = tiny(tmp_path, polish={"enabled": False}, imitate={"gradient_steps": 4, "rounds": 40})
    folder, other = tmp_path / "run", tmp_path / "other"
    arguments = ("distill", recipe, "--seconds", "0.1")
    assert killed_at("before:checkpoints/round-000001:1", *arguments, "--out", folder).returncode == KILLED
    rounds = recipes.read(folder / "recipe.yaml")["seconds_rounds"]
    assert rounds >= 2
    done = limbeck(*arguments, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert f"round {rounds}/{rounds}" in done.stderr
    assert recipes.read(folder / "recipe.yaml")["seconds_rounds"] == rounds
    again = limbeck("distill", folder / "recipe.yaml", "--out", other)
    assert again.returncode == 0, again.stderr
    assert students(other) == students(folder) != {}


# ---------------------------------------------------------------- whose folder it is


def test_a_folder_in_use_names_its_holder(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("distill", recipe, "--out", folder)
    wait_for(process, "round 1/5")
    second = limbeck("distill", recipe, "--out", folder)
    process.communicate(timeout=60)
    assert second.returncode == 5
    assert f"is in use by process {process.pid} on " in last_line(second.stderr)
    assert "Wait for it, stop it, or choose another --out." in last_line(second.stderr)
    assert process.returncode == 0, "the first run was not disturbed"
    check_same(folder, undisturbed)


def test_a_folder_of_another_recipe_names_the_keys(stopped: Path, recipe: Path, tmp_path: Path, call: Call) -> None:
    folder = copied(stopped, tmp_path)
    before = hashes(folder)
    answer = call("distill", recipe, "--out", folder, "--seed", "3", "--options", "collect.slots=2")
    assert "was made by another recipe: seed, collect.slots differ. Choose another --out" in refusal(answer, 5)
    assert hashes(folder) == before


def test_a_foreign_folder_stays_untouched(recipe: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "photos"
    (folder / "holiday").mkdir(parents=True)
    (folder / "sea.txt").write_text("blue")
    (folder / "holiday" / ".x.limbeck-part").write_text("mine")
    entries, changed = sorted(folder.rglob("*")), folder.stat().st_mtime_ns
    line = refusal(call("distill", recipe, "--out", folder), 5)
    assert "is not empty and holds no run, but 'holiday'. Choose another --out." in line
    assert sorted(folder.rglob("*")) == entries
    assert folder.stat().st_mtime_ns == changed
