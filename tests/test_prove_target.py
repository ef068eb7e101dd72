"""`limbeck prove ARTEFACT_FOLDER --target ...`: which of a folder's files plays, and what is refused before anybody does."""

import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from end_to_end_cases import CARTPOLE

import limbeck
from limbeck import blueprints, cli, rollout, storage
from limbeck.contracts import Blueprint, Dense, Spec
from limbeck.errors import InputError, StorageError
from limbeck.exporters import python as python_target
from limbeck.spaces import head_for

FEW = ("prove.bound_episodes=20", "verify.episodes=3", "verify.random_episodes=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pole angle plus its velocity says where to push: written for three targets."""
    place = tmp_path_factory.mktemp("target")
    env = gym.make("CartPole-v1")
    spec = Spec(env.observation_space, env.action_space, "CartPole-v1")
    weight = np.array([[0, 0], [0, 0], [-1, 1], [-1, 1]], np.float32)
    blueprint = Blueprint(spec, head_for(spec.action_space), (Dense(weight, np.zeros(2, np.float32)),))
    blueprints.save(blueprint, place / "policy.safetensors", {})
    limbeck.export(place / "policy.safetensors", to=["numpy", "onnx", "python"], out=place / "rule")
    return place / "rule"


def proved(folder, out, **asked):
    return limbeck.prove(str(folder), CARTPOLE, "CartPole-v1", retain=0.2, max_episodes=60, options=FEW, out=out, **asked)  # fmt: skip


def test_the_named_file_plays_and_the_verdict_says_so(folder, tmp_path, monkeypatch):
    played = []
    real = python_target.load
    monkeypatch.setattr(python_target, "load", lambda *given: played.append(given[0]) or real(*given))
    found = proved(folder, tmp_path / "python.json", target="python")
    assert played, "the one-file policy was loaded"
    assert (found.verdict, found.played_by) == ("proved", "python")
    assert found.reason.endswith("; played by python/policy.py")
    onnx = proved(folder, tmp_path / "onnx.json", target="onnx")
    assert (onnx.verdict, onnx.played_by) == ("proved", "onnx")
    assert onnx.reason.endswith("; played by onnx/policy.onnx")
    assert onnx.student_returns == found.student_returns, "the same rule on the same seeds"


def test_by_default_the_first_that_runs_plays(folder, tmp_path):
    found = proved(folder, tmp_path / "proof.json")
    assert found.played_by == "numpy"
    assert found.reason.endswith("; played by numpy/policy.safetensors")
    with pytest.raises(InputError, match="has player numpy, this one onnx"):
        proved(folder, tmp_path / "proof.json", target="onnx")


@pytest.mark.parametrize(
    ("student", "target", "told"),
    [
        ("FOLDER", "onx", "unknown target 'onx'; did you mean 'onnx'? Allowed: numpy, onnx, python"),
        ("FOLDER", "wasm", "holds no wasm. Allowed: numpy, onnx, python; or write it first: limbeck export ... --to wasm"),
        ("FILE", "onnx", "which is no artefact folder"),
    ],
)  # fmt: skip
def test_what_cannot_play_is_refused_before_anything_is_played(folder, monkeypatch, capsys, tmp_path, student, target, told):  # fmt: skip
    monkeypatch.setattr(rollout, "play", None)
    given = str(folder if student == "FOLDER" else folder.parent / "policy.safetensors")
    out = str(tmp_path / "proof.json")
    assert cli.main(["prove", given, CARTPOLE, "CartPole-v1", "--target", target, "--out", out]) == 2
    assert told in capsys.readouterr().err


def test_a_target_whose_runtime_is_missing_says_which_package(folder, tmp_path, monkeypatch):
    from limbeck.exporters import onnx

    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'cannot be played here: .*pip install "limbeck\[onnx\]"'):
        proved(folder, tmp_path / "proof.json", target="onnx")
    assert not (tmp_path / "proof.json").exists()


def test_a_changed_file_does_not_play(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    storage.write_bytes(broken / "onnx" / "policy.onnx", b"nothing")
    with pytest.raises(StorageError, match=r"onnx/policy\.onnx"):
        proved(broken, tmp_path / "proof.json", target="onnx")


def test_an_artefact_of_another_environment_is_refused_before_anybody_plays(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "play", lambda *given, **more: pytest.fail("somebody played"))
    teacher = str(Path(__file__).parents[1] / "recipes" / "teachers" / "pendulum.safetensors")
    words = r"made for CartPole-v1 and does not fit Pendulum-v1: observations: artefact Box\(4,\), task Box\(3,\); actions: artefact .* Name its own"
    with pytest.raises(InputError, match=words):
        limbeck.prove(str(folder), teacher, "Pendulum-v1", out=tmp_path / "proof.json")
    assert not (tmp_path / "proof.json").exists()
