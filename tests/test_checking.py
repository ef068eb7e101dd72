"""`limbeck check` in closed loop: who plays, against whom, what counts as the same, and what is said where nothing can."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "exporters"))
from cases_export import blueprint

import limbeck
from limbeck import blueprints, cli, exporters, spaces, storage, tasks
from limbeck.contracts import Blueprint
from limbeck.errors import InputError
from limbeck.exporters import c
from limbeck.runtimes import compiled_c, firmware
from limbeck.stages import ship
from limbeck.standalone import benching

pytestmark = pytest.mark.skipif(
    compiled_c.find_compiler() is None, reason="no C compiler: apt-get install gcc libc6-dev"
)
needs_arm = pytest.mark.skipif(bool(firmware.missing("cortex-m4f")), reason=firmware.missing("cortex-m4f"))


def student(env: str, **options) -> Blueprint:
    task = tasks.resolve(env)
    seen = {"observation_space": task.spec.observation_space, **options}
    kind = None if isinstance(task.spec.action_space, gym.spaces.Discrete) else "tanh"
    return replace(blueprint(task.spec.action_space, kind, **seen), spec=task.spec)


def written(policy: Blueprint, env: str, folder: Path, targets: list[str]) -> Path:
    ship.export_one(policy, tasks.resolve(env), folder, targets, 0, 32, {})
    return folder


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(
        student("CartPole-v1", hidden=(8,)), "CartPole-v1", tmp_path_factory.mktemp("check") / "a", ["c", "numpy"]
    )


@pytest.fixture
def one_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "BOARDS", {"cortex-m4f": firmware.BOARDS["cortex-m4f"]})


@needs_arm
@pytest.mark.usefixtures("one_board")
def test_every_backend_plays_the_same_episodes(cartpole: Path) -> None:
    rows = {row.backend: row for row in limbeck.check(cartpole)}
    assert set(rows) == {"gcc", "clang", "cortex-m4f", "numpy"}
    for row in rows.values():
        assert row.ok in (True, None)
        if row.ok is None:
            assert "apt-get install" in row.note
            continue
        assert (row.loop.episodes, row.loop.reference, row.loop.actions_equal) == (2, "numpy", 1.0)
        assert row.loop.mean_return == row.loop.reference_return == row.loop.steps / 2  # CartPole pays 1 a step
    device = rows["cortex-m4f"].device
    assert device.name == "cortex-m4f"
    assert 4 * (4 * 8 + 8 + 8 * 2 + 2) < device.flash_bytes < 4096
    assert rows["gcc"].device is None


@pytest.mark.usefixtures("one_board")
@pytest.mark.parametrize(
    ("env", "options"), [("Pendulum-v1", {"hidden": (8,)}), ("CartPole-v1", {"hidden": (4,), "gru": 3})]
)
def test_continuous_actions_and_memory(env: str, options: dict, tmp_path: Path) -> None:
    folder = written(student(env, **options), env, tmp_path / "a", ["c"])
    rows = limbeck.check(folder, episodes=1)
    for row in rows:
        if row.ok is not None:
            assert row.loop.ok
            assert row.loop.reference == f"c {rows[0].backend}"  # the artefact holds nothing in numpy
            assert row.loop.mean_return == pytest.approx(row.loop.reference_return, rel=1e-3)


@pytest.mark.usefixtures("no_board")
def test_a_backend_that_acts_differently_is_found_though_its_golden_rows_agree(cartpole: Path, tmp_path: Path) -> None:
    shutil.copytree(cartpole, tmp_path / "artifacts" / "m")
    contract = json.loads((tmp_path / "artifacts" / "m" / "contract.json").read_text())
    contract["targets"] = ["c"]
    (tmp_path / "artifacts" / "m" / "contract.json").write_text(json.dumps(contract))
    storage.write_manifest(tmp_path / "artifacts" / "m")
    same = student("CartPole-v1", hidden=(8,))
    last = same.layers[-1]
    other = replace(same, layers=(*same.layers[:-1], replace(last, weight=-last.weight, bias=-last.bias)))
    blueprints.save(other, tmp_path / "students" / "m" / "policy.safetensors", {})
    assert all(row.ok in (True, None) for row in exporters.check(tmp_path / "artifacts" / "m"))
    row = limbeck.check(tmp_path)[0]
    assert (row.member, row.ok, row.loop.ok) == ("m", False, False)
    assert row.loop.actions_equal < 1
    assert cli.main(["check", str(tmp_path)]) == InputError.exit_code
    blueprints.save(same, tmp_path / "students" / "m" / "policy.safetensors", {})
    assert cli.main(["check", str(tmp_path)]) == 0


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "BOARDS", {})


@pytest.mark.usefixtures("no_board")
def test_where_there_is_no_environment_the_row_says_so(cartpole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(cartpole, folder)
    for name, words in (
        ("Nowhere-v0", "Nowhere-v0"),
        ("module:Env-v0", "imports a module"),
        ("Pendulum-v1", "observation space"),
    ):
        contract = json.loads((folder / "contract.json").read_text())
        (folder / "contract.json").write_text(json.dumps({**contract, "task": name}))
        storage.write_manifest(folder)
        rows = [row for row in limbeck.check(folder) if row.ok is not None]
        assert all(row.ok and row.loop is None and words in row.unplayed for row in rows)
        assert all(row.loop.ok for row in limbeck.check(folder, env="CartPole-v1", episodes=1) if row.ok is not None)
    with pytest.raises(InputError, match="observation space"):
        limbeck.check(folder, env="Pendulum-v1")
    with pytest.raises(InputError, match=r"Nowhere-v0"):
        limbeck.check(folder, env="Nowhere-v0")


@pytest.fixture
def broken_clang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clang that is first on PATH and compiles nothing; the default compiler is another."""
    monkeypatch.setattr(benching, "CALLS", 10)
    monkeypatch.setattr(benching, "ROUNDS", 1)
    monkeypatch.setattr(benching, "_rivals", lambda *_: ({}, {}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "clang").write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    (tmp_path / "bin" / "clang").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(c, "COMPILERS", {"clang": "clang"})


@pytest.mark.usefixtures("no_board", "broken_clang")
def test_a_backend_that_breaks_fails_its_own_row_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(student("CartPole-v1", hidden=(8,), seed=9), "CartPole-v1", tmp_path / "a", ["c", "numpy"])
    rows = {row.backend: row for row in limbeck.check(folder, episodes=1)}
    assert rows.pop("clang").ok is False
    assert all(row.ok and row.loop.ok for row in rows.values())
    assert cli.main(["check", str(folder), "--episodes", "0"]) == InputError.exit_code
    assert "clang refused policy.h: error: out of order" in " ".join(capsys.readouterr().out.split())
    timed = {row.name: row for row in limbeck.bench(folder, budget="1s").rows}
    assert (timed["c clang"].within, timed["numpy"].within) == (False, True)
    assert "out of order" in timed["c clang"].note


@pytest.mark.usefixtures("no_board")
def test_damaged_weights_fail_their_own_row_and_are_no_reference(cartpole: Path, tmp_path: Path) -> None:
    shutil.copytree(cartpole, tmp_path / "a")
    (tmp_path / "a" / "numpy" / "policy.safetensors").write_bytes(b"damaged!")
    storage.write_manifest(tmp_path / "a")
    rows = [row for row in limbeck.check(tmp_path / "a", episodes=1) if row.ok is not None]
    assert {row.target: row.ok for row in rows} == {"c": True, "numpy": False}
    assert "is not a valid safetensors file" in rows[-1].note


def test_no_episodes_and_too_many(cartpole: Path, no_board: None) -> None:
    assert all(row.loop is None for row in limbeck.check(cartpole, episodes=0))
    for wrong in (-1, 1001):
        with pytest.raises(InputError, match=r"0 \(no closed loop\) to 1,000"):
            limbeck.check(cartpole, episodes=wrong)


@needs_arm
def test_an_export_measures_the_asked_parts_and_notes_those_without_room(tmp_path: Path) -> None:
    policy, task = student("CartPole-v1", hidden=(8,)), tasks.resolve("CartPole-v1")
    made, _ = ship.export_one(policy, task, tmp_path / "a", ["c", "numpy"], 0, 32, {}, ["cortex-m4f", "cortex-m0"])
    assert [[device.name for device in one.devices] for one in made] == [["cortex-m4f", "cortex-m0"], []]
    fast, slow = made[0].devices
    assert 5 * fast.instructions < slow.instructions  # floats in software
    large = student("CartPole-v1", hidden=(270, 250))
    (one,), _ = ship.export_one(large, task, tmp_path / "b", ["c"], 0, 32, {}, ["cortex-m0"])
    assert not one.devices
    assert "cortex-m0: does not fit" in one.note


def test_a_part_that_nobody_knows_is_refused_before_anything_runs(tmp_path: Path) -> None:
    teacher = Path(__file__).parent / "fixtures" / "cartpole_ppo_sb3.zip"
    with pytest.raises(InputError, match=r"unknown microcontroller 'cortex-m4'; did you mean 'cortex-m4f'"):
        limbeck.distill(teacher, "CartPole-v1", ["mlp:8"], tmp_path / "run", options=["export.devices=cortex-m4"])
    assert not (tmp_path / "run" / "dataset").exists()


@needs_arm
def test_a_policy_that_is_too_large_for_a_part_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "BOARDS", {"cortex-m0": firmware.BOARDS["cortex-m0"]})
    monkeypatch.setattr(c, "COMPILERS", {})
    folder = written(student("CartPole-v1", hidden=(270, 250)), "CartPole-v1", tmp_path / "a", ["c"])
    row = next(row for row in limbeck.check(folder, episodes=0) if row.backend == "cortex-m0")
    assert row.ok is None
    assert row.note.startswith("does not fit: ")


def test_absent_programs_are_listed_with_their_packages(
    cartpole: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["check", str(cartpole), "--episodes", "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for package in (
        "gcc libc6-dev",
        "clang",
        "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm",
        "qemu-system-misc",
    ):
        assert f"apt-get install {package}" in text or f" {package}" in text
    assert "ok numpy" in text


def test_a_folder_of_which_nothing_can_run_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(student("CartPole-v1"), "CartPole-v1", tmp_path / "a", ["c"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["check", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"limbeck: no backend of {folder} can run here: no ")
    assert "apt-get install gcc libc6-dev" in line


@needs_arm
@pytest.mark.usefixtures("one_board")
@pytest.mark.parametrize("columns", [60, 200])
def test_what_is_printed_fits_the_terminal(
    cartpole: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["check", str(cartpole), "--episodes", "1"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    assert "closed loop: 1 episode, " in text
    assert "instructions a step" in " ".join(text.split())


@pytest.mark.usefixtures("no_board")
def test_the_json_has_the_loop(cartpole: Path, capsys) -> None:
    assert cli.main(["check", str(cartpole), "--episodes", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["loop"]["actions_equal"] == 1.0
    assert spaces.flat_size(student("CartPole-v1").spec.observation_space) == 4
    assert np.isfinite(rows[0]["loop"]["mean_return"])
