"""A run stopped anywhere, in any way, ends as if it had never been stopped: real processes, real signals, real files.

What is stopped is a process of its own. What goes on after it runs in this one, which has everything loaded, unless the
test is marked slow. Those play everything that a run may do, films too; the others what every run does.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_cases import (
    Answer,
    called,
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
from end_to_end_cases import no_film

from limbeck import recipes, storage

Call = Callable[..., Answer]
KILLED = -signal.SIGKILL
LEAN = {"export": {"targets": ["c"], "devices": []}, "report": {"gallery": "off"}}
LATER = [  # one in every kind of stage after imitation
    "before:checkpoints/polish-mlp-2-s0-000002:1",
    "after:policy.h:1",  # an artefact half written
    "before:records/prove-mlp-2-s0:1",
    "torn:result.json:1",
]
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
    "after:records/prove-mlp-2-s0:1",
    "before:records/latency-mlp-2-s0:1",
    "after:video.mp4:1",
    "before:video.json:1",
    "torn:result.json:1",
    "torn:manifest.json:1",
]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(monkeypatch, capsys)


@pytest.fixture(autouse=True, scope="module")
def unfilmed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.reporting.side_by_side", no_film)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("recipe"), **LEAN)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    table, _ = finish("distill", recipe, "--out", folder)
    assert list((folder / "checkpoints").glob("polish-mlp-2-s0-*")), "the case must polish, or it tests less"
    folder.with_suffix(".table").write_text(table)
    return folder


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed after the checkpoint of its fourth round of five."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert killed_at("after:checkpoints/round-000003:1", "distill", recipe, "--out", folder).returncode == KILLED
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe that leaves nothing out."""
    return tiny(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def whole(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = limbeck("distill", full, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def finish(*arguments: str | Path) -> tuple[str, str]:
    """Standard output and error of a command that succeeds in this process."""
    code, out, err = called(*arguments)
    assert code == 0, err
    return out, err


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


def test_killed_in_every_later_stage_it_ends_the_same(
    recipe: Path, stopped: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = copied(stopped, tmp_path)
    for point in LATER:
        killed = killed_at(point, "distill", recipe, "--out", folder, filmed=False)
        assert killed.returncode == KILLED, (point, killed.stderr)
    finish("distill", recipe, "--out", folder)
    check_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("points", [POINTS, MORE_POINTS], ids=["each stage", "many more"])
def test_killed_at_many_points(points: list[str], full: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for point in points:
        killed = killed_at(point, "distill", full, "--out", folder)
        assert killed.returncode == KILLED, (point, killed.stderr)
    done = limbeck("distill", full, "--out", folder)
    assert done.returncode == 0, done.stderr
    check_same(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("writes", [12, 13, 16])  # a start is three files, one gallery eight, done whole or again
def test_killed_every_few_writes(writes: int, full: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(60):
        if killed_at(f"write:{writes}", "distill", full, "--out", folder).returncode == 0:
            break
    else:
        pytest.fail("sixty processes did not bring the run to its end")
    check_same(folder, whole)


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


@pytest.mark.slow
def test_killed_from_outside_when_it_says_where_it_is(full: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for line in ("round 3/5", "generation 1/3"):
        process = start("distill", full, "--out", folder)
        wait_for(process, line)
        process.kill()
        process.communicate()
        assert process.returncode == KILLED
    done = limbeck("distill", full, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "continuing after round 5 of 5" in done.stderr
    check_same(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_until_it_ends(full: Path, whole: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(7)
    for attempt in range(60):
        process = start("distill", full, "--out", folder)
        try:
            process.communicate(timeout=moments.uniform(1.5, 3.5 + 0.1 * attempt))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == KILLED
    assert process.returncode == 0
    check_same(folder, whole)


# ---------------------------------------------------------------- asked to stop


def ask_to_stop(process: subprocess.Popen[str], sent: signal.Signals, code: int, word: str) -> None:
    """It ends soon, without a trace, and says how to continue."""
    begin = time.monotonic()
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - begin < 10
    assert stdout == ""
    assert "Traceback" not in stderr
    assert last_line(stderr).startswith(f"limbeck: {word}. ")
    assert "run the same command again to continue" in last_line(stderr)


def test_interrupted_it_says_how_to_continue(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = start("distill", recipe, "--out", tmp_path / "run")
    wait_for(process, "round 2/5")
    ask_to_stop(process, signal.SIGINT, 130, "interrupted")
    _, said = finish("distill", recipe, "--out", tmp_path / "run")
    assert "continuing after round" in said
    check_same(tmp_path / "run", undisturbed)


def test_a_folder_in_use_names_its_holder_who_is_not_disturbed_and_may_be_terminated(
    recipe: Path, undisturbed: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "run"
    process = start("distill", recipe, "--out", folder)
    wait_for(process, "round 1/5")
    process.send_signal(signal.SIGSTOP)  # so that it is not done before it is asked
    line = refusal(call("distill", recipe, "--out", folder), 5)
    assert f"is in use by process {process.pid} on " in line
    assert "Wait for it, stop it, or choose another --out." in line
    process.send_signal(signal.SIGCONT)
    wait_for(process, "round 2/5")
    ask_to_stop(process, signal.SIGTERM, 143, "terminated")
    finish("distill", recipe, "--out", folder)
    check_same(folder, undisturbed)


@pytest.mark.slow
def test_the_holder_of_a_folder_that_another_wants_goes_on_to_its_end(full: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("distill", full, "--out", folder)
    wait_for(process, "round 1/5")
    second = limbeck("distill", full, "--out", folder)
    process.communicate(timeout=60)
    assert second.returncode == 5
    assert f"is in use by process {process.pid} on " in last_line(second.stderr)
    assert process.returncode == 0
    check_same(folder, whole)


def test_a_finished_run_is_not_done_again(recipe: Path, undisturbed: Path) -> None:
    before = hashes(undisturbed)
    table, said = finish("distill", recipe, "--out", undisturbed)
    assert table == undisturbed.with_suffix(".table").read_text() != ""
    assert hashes(undisturbed) == before
    assert not [word for word in ("round 1/5", "generation", "playing", "filming") if word in said]


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
    _, said = finish("distill", recipe, "--out", folder)
    assert "round-000003.safetensors is damaged and skipped" in said
    assert "continuing after round 3 of 5" in said
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
    finish("distill", undisturbed / "recipe.yaml", "--out", tmp_path / "run")
    check_same(tmp_path / "run", undisturbed)


def test_seconds_become_rounds_that_stay(tmp_path: Path) -> None:
    """The number of rounds is in recipe.yaml from the moment it is known, for the resumed run and for the recipe's."""
    less = {**LEAN, "polish": {"enabled": False}, "export": {"targets": ["numpy"]}}
    recipe = tiny(tmp_path, imitate={"gradient_steps": 4, "rounds": 40}, **less)
    folder, other = tmp_path / "run", tmp_path / "other"
    arguments = ("distill", recipe, "--seconds", "0.1")
    assert killed_at("before:checkpoints/round-000001:1", *arguments, "--out", folder).returncode == KILLED
    rounds = recipes.read(folder / "recipe.yaml")["seconds_rounds"]
    assert rounds >= 2
    _, said = finish(*arguments, "--out", folder)
    assert f"round {rounds}/{rounds}" in said
    assert recipes.read(folder / "recipe.yaml")["seconds_rounds"] == rounds
    finish("distill", folder / "recipe.yaml", "--out", other)
    assert students(other) == students(folder) != {}


# ---------------------------------------------------------------- whose folder it is


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
