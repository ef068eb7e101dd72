"""A tiny real run through the command line, and what must be the same however often it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli, storage, tasks

TEACHER = Path(__file__).parent / "fixtures" / "cartpole_ppo_sb3.zip"
DRIVER = Path(__file__).parent / "kill_driver.py"
PASSING = {"seconds", "peak_memory_bytes", "latency", "command"}  # differ from run to run
TINY: dict[str, Any] = {
    "teacher": str(TEACHER),
    "env": "CartPole-v1",
    "students": ["mlp:2@2", "linear@2"],
    "task": {"kwargs": {"max_episode_steps": 60}},
    "collect": {"steps": 128, "slots": 4},
    "imitate": {"rounds": 5, "gradient_steps": 4},
    "race": {"rounds": [2], "episodes": 2, "final_episodes": 4},
    "polish": {"generations": 3, "pairs": 2, "episodes": 2, "validation_episodes": 4, "validate_every": 2},
    "verify": {"episodes": 4, "random_episodes": 8},
    "prove": {"max_episodes": 60, "chunk": 8, "bound_episodes": 10, "retain": 0.5},
    "export": {"golden_steps": 32},
}


def recipe_file(folder: Path, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Path:
    """A recipe of `base` with changes; nested tables are merged."""
    values = dict(base)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def tiny(folder: Path, **changes: Any) -> Path:
    """A recipe file of about three seconds of work."""
    return recipe_file(folder, TINY, changes)


def environment(**changes: str | None) -> dict[str, str]:
    wanted = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return {key: value for key, value in wanted.items() if value is not None}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "limbeck.cli", *map(str, arguments)]


def limbeck(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    options = {"env": environment(), "timeout": 120, **options}
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


def killed_at(point: str, *arguments: str | Path, filmed: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a process that kills itself by SIGKILL at `point` (see kill_driver.py)."""
    return subprocess.run(
        [sys.executable, str(DRIVER), point, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, env=environment(UNFILMED=None if filmed else "1"),
    )  # fmt: skip


def last_line(stderr: str) -> str:
    return stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------- what a run left


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of the run by a digest of its content; clocks and memory are left out of the JSON ones."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name in (storage.LOCK, storage.MANIFEST, "run.json", "report.html") or "latency-" in name:
            continue
        found[name] = _digest(path)
    return found


def students(folder: Path) -> dict[str, str]:
    return {k: v for k, v in fingerprint(folder).items() if k.startswith("students/")}


def hashes(folder: Path) -> dict[str, str]:
    """Every file but the lock, byte for byte."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != storage.LOCK)
    return {str(p.relative_to(folder)): storage.sha256(p) for p in files}


def _digest(path: Path) -> str:
    if "checkpoints" in path.parts:
        arrays, meta = storage.read_arrays(path)
        meaning = json.dumps(_timeless(json.loads(meta["limbeck"])))
        return storage.digest(arrays, meaning)
    if path.suffix == ".json" and "artifacts" not in path.parts:
        return hashlib.sha256(json.dumps(_timeless(storage.read_json(path))).encode()).hexdigest()
    return storage.sha256(path)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in PASSING}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- the command line in this process


Answer = tuple[int, str, str]  # exit code, standard output, standard error


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`main` called here, where starting a process would only cost time; it must not claim this process's signals."""
    _spared(monkeypatch)

    def call(*arguments: str | Path) -> Answer:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def called(*arguments: str | Path) -> Answer:
    """The same where no fixture of one test can be asked for."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        _spared(patch)
        code = cli.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def _spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets for its whole process is set back."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(tasks.watchdog, "hard_exit", False)
    monkeypatch.setattr(tasks.watchdog, "limit_seconds", 60.0)
    monkeypatch.setattr("sys.path", list(sys.path))


def refusal(answer: Answer, code: int) -> str:
    """The one line in which a refusal is told; it must stand alone, without a trace, with nothing on standard output."""
    found, out, err = answer
    assert found == code, err
    assert out == ""
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert [line for line in lines if line.startswith("limbeck: ")] == lines[-1:]
    return lines[-1]
