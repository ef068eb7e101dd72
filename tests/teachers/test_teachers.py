from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import numpy_rows

from limbeck import blueprints, storage, teachers
from limbeck.contracts import Spec, Teacher
from limbeck.errors import InputError, UnsafeError
from limbeck.runtimes.numpy import NumpyPolicy

CARTPOLE = Spec(spaces.Box(-9, 9, (4,), np.float32), spaces.Discrete(2), "CartPole-v1")


def rows(teacher: Teacher, obs: np.ndarray) -> np.ndarray:
    return teacher.policy(obs, {}, np.ones(len(obs), bool)).params


@pytest.fixture
def own(tmp_path: Path, cartpole_zip: Path) -> Path:
    """The CartPole teacher as a Limbeck file with provenance."""
    blueprint = teachers.load(cartpole_zip).blueprint
    path = tmp_path / "own.safetensors"
    blueprints.save(blueprint, path, {"algorithm": "PPO", "return": {"mean": 500.0, "low": 499.0}})
    return path


# ---------------------------------------------------------------- what loads


def test_a_limbeck_file_round_trips(own: Path, cartpole_zip: Path) -> None:
    teacher = teachers.load(own, CARTPOLE)
    assert (teacher.info.format, teacher.info.algorithm) == ("limbeck", "PPO")
    assert teacher.policy.spec is CARTPOLE
    assert teacher.info.stated["return"] == {"mean": 500.0, "low": 499.0}
    assert teacher.info.sha256 == storage.sha256(own)
    obs = numpy_rows(40, 4)
    assert np.array_equal(rows(teacher, obs), rows(teachers.load(cartpole_zip), obs))
    assert teachers.inspect(own).stated["parameters"] == teacher.blueprint.parameters
    with pytest.raises(InputError, match="its normaliser is inside"):
        teachers.load(own, normaliser="x.pkl")
    with pytest.raises(InputError, match="it says itself what it is"):
        teachers.load(own, kind="q")


def test_the_name_does_not_matter_and_is_mentioned(own: Path, cartpole_zip: Path, tmp_path: Path) -> None:
    for source, wrong in ((own, "teacher.zip"), (cartpole_zip, "teacher.pkl")):
        renamed = tmp_path / wrong
        renamed.write_bytes(source.read_bytes())
        assert any("its name ends in" in note for note in teachers.load(renamed).info.notes)
    assert not any("its name ends in" in note for note in teachers.load(cartpole_zip).info.notes)


def test_objects_that_are_teachers_already(own: Path) -> None:
    teacher = teachers.load(own)
    assert teachers.load(teacher) is teacher
    assert teachers.load(teacher.blueprint, CARTPOLE).policy.blueprint is teacher.blueprint
    policy = NumpyPolicy(teacher.blueprint)
    assert teachers.load(policy, CARTPOLE).policy is policy
    with pytest.raises(InputError, match="does not fit"):
        teachers.load(policy, Spec(CARTPOLE.observation_space, spaces.Discrete(3)))


def test_the_bundled_teacher() -> None:
    path = resources.files("limbeck") / "assets" / "ppo-lunar.safetensors"
    info = teachers.inspect(str(path))
    assert info.stated["parameters"] == 69124
    assert info.stated["return"]["low"] > 250
    assert info.stated["environment"] == "LunarLander-v3"
    assert teachers.load(str(path)).blueprint.value_layers == ()


def test_a_sidecar_states_the_return(own: Path, cartpole_zip: Path, tmp_path: Path) -> None:
    path, beside = tmp_path / "t.zip", tmp_path / "t.json"
    path.write_bytes(cartpole_zip.read_bytes())
    beside.write_text(json.dumps({"stated_return": 490, "stated_low": 480.5, "sha256": storage.sha256(path)}))
    assert teachers.load(path).info.stated["return"] == {"mean": 490.0, "low": 480.5}
    beside.write_text('{"mean_reward": 480}')
    assert teachers.inspect(path).stated["return"] == 480.0
    for content in ("{", "[1]", '{"stated_return": 1, "sha256": "of another"}'):
        beside.write_text(content)
        assert "return" not in teachers.load(path).info.stated


# ---------------------------------------------------------------- what does not


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        ("absent.zip", "No such file"),
        ("", "is a folder"),
        ("empty.zip", "is empty"),
        ("pipe", "no regular file"),
        ("nul\0.zip", "no teacher at"),
        ("a" * 300, "no teacher at"),
    ):
        for verb in (teachers.load, teachers.inspect):
            with pytest.raises(InputError, match=what) as caught:
                verb(f"{tmp_path}/{path}")
            assert caught.value.exit_code == 2
            assert "\n" not in str(caught.value)


def test_every_prefix_of_every_format_is_refused(own: Path, cartpole_zip: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "plain.pt")
    for source in (own, cartpole_zip, tmp_path / "plain.pt"):
        content = source.read_bytes()
        cut = tmp_path / f"cut{source.suffix}"
        for length in [*range(1, 200, 7), *range(200, len(content), len(content) // 60), len(content) - 1]:
            cut.write_bytes(content[:length])
            with pytest.raises(InputError):
                teachers.load(cut)


def test_garbage_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, start in enumerate(
        (b"", b"\x80\x04", b"PK\x03\x04", b"PK\x05\x06", struct.pack("<Q", 50) + b"{", b"\x89HDF")
    ):
        path = tmp_path / f"garbage{number}"
        for size in (1, 30, 3000):
            path.write_bytes(start + rng.bytes(size))
            for verb in (teachers.load, teachers.inspect):
                with pytest.raises(InputError):
                    verb(path)


def tensor(begin: int, end: int, shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def safetensors(header: Any, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


ONE = json.dumps(tensor(0, 4)).encode()
MALFORMED = {
    "overlap": safetensors({"a": tensor(0, 4), "b": tensor(0, 4)}, b"0000"),
    "hole": safetensors({"a": tensor(4, 8)}, b"00000000"),
    "trailing": safetensors({"a": tensor(0, 4)}, b"0000PK"),
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header of 101 MB": struct.pack("<Q", 101_000_000) + b"{",
    "overflow": safetensors({"a": tensor(0, 0, (2**62, 4))}),
    "truncated": safetensors({"a": tensor(0, 8, (2,))}, b"0000"),
    "duplicate key": safetensors(b'{"a":' + ONE + b',"a":' + ONE + b"}", b"0000"),
    "hostile name": safetensors({"../../x\n<script>": tensor(0, 4)}, b"0000"),
    "empty table": safetensors({}),
    "deep": safetensors(b'{"a":' * 50_000),
    "deep metadata": safetensors({"__metadata__": {"limbeck": "[" * 50_000}}),
    "strange metadata": safetensors({"__metadata__": ["limbeck"]}),
    "metadata no JSON": safetensors({"__metadata__": {"limbeck": "{"}}),
    "metadata of another shape": safetensors({"__metadata__": {"limbeck": "[1]"}}),
    "number as metadata": safetensors({"__metadata__": {"limbeck": 3}}),
}


@pytest.mark.parametrize("case", list(MALFORMED))
def test_malformed_safetensors_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(MALFORMED[case])
    for verb in (teachers.load, teachers.inspect):
        with pytest.raises(InputError) as caught:
            verb(path)
        assert "\n" not in str(caught.value)


def test_nan_in_a_limbeck_file_names_the_tensor(own: Path, tmp_path: Path) -> None:
    drawn = teachers.load(own).blueprint
    first = dataclasses.replace(drawn.layers[0], bias=np.full_like(drawn.layers[0].bias, np.nan))
    blueprints.save(dataclasses.replace(drawn, layers=(first, *drawn.layers[1:])), tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"layers\.0\.bias holds NaN"):
        teachers.load(tmp_path / "nan.safetensors")


def test_tensors_without_a_network_say_what_to_do(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "x.pt")
    storage.write_arrays(tmp_path / "x.safetensors", {"conv.weight": np.zeros(2, np.float32)})
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"conv.weight": np.zeros(2, np.float32)}))
    for name in ("x.pt", "x.safetensors", "x.pkl"):
        with pytest.raises(InputError, match=r"Build the torch\.nn\.Module in Python"):
            teachers.load(tmp_path / name, CARTPOLE)


def test_pickles_with_code_are_refused_for_safety(tmp_path: Path, trap: Any, audited: Any, cartpole_zip: Path) -> None:
    (tmp_path / "bare.pkl").write_bytes(trap.blob)
    (tmp_path / "cut.pkl").write_bytes(trap.blob[:-1] + b"N.")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(trap.payload, 0))
    torch.save({"state_dict": {}, "data": trap.payload}, tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    pickle.loads((tmp_path / "bare.pkl").read_bytes())
    assert trap.fired(), "positive control"
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert trap.fired(), "positive control"
    teachers.load(cartpole_zip)
    for name in ("bare.pkl", "cut.pkl", "old.pkl", "a.pt", "whole.pt"):
        with audited() as events, pytest.raises(UnsafeError) as caught:
            teachers.load(tmp_path / name)
        assert caught.value.exit_code == 4
        assert not events, name
        with audited() as events:
            info = teachers.inspect(tmp_path / name)
        assert not events, name
        assert info.format == "program"
        names = [n for found in info.stated["code"].values() for n in found]
        assert any("Linear" in n or n.endswith(".open") for n in names), name
    assert not trap.fired()


def test_programs_are_refused_for_safety(tmp_path: Path) -> None:
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(exported, tmp_path / "program.pt2")
    with pytest.raises(UnsafeError, match=r"Refused"):
        teachers.load(tmp_path / "program.pt2")
    assert teachers.inspect(tmp_path / "program.pt2").format == "program"


def test_a_normaliser_is_no_teacher(tmp_path: Path, cartpole_zip: Path) -> None:
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    class_like = RunningMeanStd(shape=(4,))
    class_like.obs_rms = 1
    (tmp_path / "vec_normalize.pkl").write_bytes(pickle.dumps(class_like))
    with pytest.raises(InputError, match="--normaliser"):
        teachers.load(tmp_path / "vec_normalize.pkl")
