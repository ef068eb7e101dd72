"""The JSON beside a teacher: read up to its limit and no further, and never an error."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from limbeck.contracts import TeacherInfo
from limbeck.teachers import sidecar

INFO = TeacherInfo("m.zip", "sb3", "PPO", "0" * 64, {}, (), ())


def told(folder: Path, content: bytes | str) -> TeacherInfo:
    (folder / "m.json").write_bytes(content.encode() if isinstance(content, str) else content)
    return sidecar.with_sidecar(INFO, folder / "m.zip")


def test_the_stated_return_is_read(tmp_path: Path) -> None:
    assert told(tmp_path, json.dumps({"stated_return": 5, "stated_low": 4})).stated["return"] == {"mean": 5, "low": 4}
    assert told(tmp_path, json.dumps({"mean_reward": -1.5})).stated["return"] == -1.5
    assert "return" not in told(tmp_path, json.dumps({"mean_reward": 1, "sha256": "1" * 64})).stated


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "m.json").open("wb") as stream:
        stream.truncate(300 * 2**20)
    tracemalloc.start()
    info = sidecar.with_sidecar(INFO, tmp_path / "m.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert "larger than 1 MiB" in info.notes[-1]
    padded = json.dumps({"return": 1}).ljust(2**20)
    assert told(tmp_path, padded).stated["return"] == 1
    assert "return" not in told(tmp_path, padded + " ").stated


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000, "true", '"5"'])
def test_what_is_no_number_states_nothing(number: str, tmp_path: Path) -> None:
    assert "return" not in told(tmp_path, f'{{"return": {number}}}').stated


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 10**5, b"[]", b"{"])
def test_damage_is_ignored(content: bytes, tmp_path: Path) -> None:
    assert "return" not in told(tmp_path, content).stated
