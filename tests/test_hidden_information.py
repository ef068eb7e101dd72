"""Teachers that see more than their students: what memory makes up for is proved, what nothing makes up for is named."""

from pathlib import Path

import numpy as np
import pytest
from end_to_end_cases import FAST, no_film
from hidden_cases import IMITABLE, LENGTH, OPTIMUM, HiddenBit, teacher

import limbeck
from limbeck import storage, tasks
from limbeck.proof import Triples, retention, retention_interval

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch):
    monkeypatch.setattr(tasks.watchdog, "hard_exit", False)
    monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)


def run(folder, *options, students=("mlp:8",)):
    return limbeck.distill(teacher, HiddenBit, list(students), folder, options=[*FAST, "collect.steps=1000", "prove.max_episodes=120", "export.targets=c", *options])  # fmt: skip


def retained(result):
    """Estimate and 95 % interval of the first member's retention, from the episodes of its proof."""
    proof = result.members[0].proof
    played = (proof.student_returns, proof.teacher_returns, proof.random_returns)
    triples = Triples(*(np.asarray(returns) for returns in played))
    return retention(triples), *retention_interval(triples, 0)


# ---------------------------------------------------------------- the hidden bit


def test_a_bit_that_no_student_sees_is_named_with_its_share(tmp_path):
    result = run(tmp_path / "run", "keys=place")
    proof = result.members[0].proof
    assert proof.verdict == "not proved"
    assert result.evaluations["greedy"].mean == 1.0
    share, low, high = retained(result)
    best = (OPTIMUM - 0.25) / (1 - 0.25)
    assert low <= best + 0.05
    assert high < 0.6, (share, low, high)
    found = storage.read_json(tmp_path / "run" / "records" / "blindness-memoryless.json")["blindness"]
    assert found["fires"]
    assert found["low"] <= IMITABLE <= found["high"]
    assert abs(found["imitable"] - IMITABLE) < 0.04
    (note,) = [note for note in result.notes if "irreducible gap" in note]
    assert "let it see more with keys or indices" in note, "no memory would help: the bit is never shown"
    assert "irreducible gap" in (tmp_path / "run" / "report.html").read_text()


def test_who_sees_the_bit_learns_it_and_nothing_is_named(tmp_path):
    result = run(tmp_path / "run", "prove.retain=0.8")
    assert result.members[0].proof.verdict == "proved", result.members[0].proof.reason
    assert not [note for note in result.notes if "gap" in note]
    found = storage.read_json(tmp_path / "run" / "records" / "blindness-memoryless.json")["blindness"]
    assert not found["fires"]
    assert found["reason"] == "the student sees all that the teacher sees"


def test_the_corridor_is_what_its_closed_forms_say():
    env, returns = HiddenBit(), {"bit": [], "zero": []}
    for seed in range(400):
        for who, total in returns.items():
            obs, _ = env.reset(seed=seed)
            for _ in range(LENGTH):
                batch = {key: np.asarray(value)[None] for key, value in obs.items()}
                obs, reward, ended, _, _ = env.step(int(teacher(batch)[0]) if who == "bit" else 0)
            assert ended
            total.append(reward)
    assert np.mean(returns["bit"]) == 1.0
    assert abs(np.mean(returns["zero"]) - OPTIMUM) < 0.08  # three standard errors


# ---------------------------------------------------------------- what memory makes up for


def distilled(name, folder, *options):
    return limbeck.distill(str(RECIPES / f"{name}.yaml"), out=folder, options=list(options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("history=5", "students=mlp:64x64@2", "imitate.batch=512"),
        ("history=8", "students=conv1d:24k4-24k3:48@2", "imitate.batch=512"),
    ],
)
def test_velocities_that_are_hidden_are_read_from_the_past(tmp_path, monkeypatch, options):
    pytest.importorskip("mujoco", reason='pip install "limbeck[envs]"')
    monkeypatch.chdir(RECIPES.parent)
    proof = distilled("halfcheetah-hidden", tmp_path / "past", *options).members[0].proof
    assert proof.verdict == "proved", proof.reason
    assert proof.retain == 0.9


@pytest.mark.slow
def test_without_a_past_hidden_velocities_are_missed(tmp_path, monkeypatch):
    pytest.importorskip("mujoco", reason='pip install "limbeck[envs]"')
    monkeypatch.chdir(RECIPES.parent)
    result = distilled("halfcheetah-hidden", tmp_path / "control", "students=mlp:48x48@2", "imitate.batch=512")
    control = retained(result)
    assert control[2] < 0.6, control


@pytest.mark.slow
def test_an_object_seen_long_ago_is_remembered_by_a_gru(tmp_path, monkeypatch):
    pytest.importorskip("minigrid", reason='pip install "limbeck[minigrid]"')
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    proof = distilled("minigrid-memory", tmp_path / "gru").members[0].proof
    assert proof.verdict == "proved", proof.reason
    assert proof.retain == 0.9
    memoryless = distilled("minigrid-memory", tmp_path / "control", "students=mlp:64x64")
    control = retained(memoryless)
    assert control[2] < 0.6, control
    assert [note for note in memoryless.notes if "with memory" in note], "what it lacks is memory, and that is said"
