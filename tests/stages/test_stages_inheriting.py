"""Inheritance in a run: fewer steps, frozen bits, another run's student, and what is refused before anything runs."""

from dataclasses import replace
from pathlib import Path

import family_runs
import numpy as np
import pytest

from limbeck import blueprints, imitation, storage
from limbeck.blueprints import fold
from limbeck.errors import InputError

LUNAR, ENV = "bundled:ppo-lunar", "LunarLander-v3"
FIXTURES = Path(__file__).parent.parent / "fixtures"
STUDENTS = ("mlp:16x16:tanh", "nested:16x16:tanh", "mlp:32x32:r4:tanh")


def first_losses(folder, inherit, steps, students=STUDENTS):
    """Mean loss of each member over the first round's gradient steps, and what was recorded."""
    options = [f"imitate.gradient_steps={steps}", "imitate.rounds=1", *(["imitate.inherit=teacher"] * inherit)]
    family_runs.imitated(folder, LUNAR, ENV, students, options)
    rows = storage.read_metrics(folder)
    recorded = storage.read_json(folder / "records" / "inherit.json") if inherit else None
    return {r["member"]: r["loss"] for r in rows if r["stage"] == "imitate"}, recorded


def test_inherited_students_need_fewer_gradient_steps(tmp_path):
    few, recorded = first_losses(tmp_path / "few", True, 20)
    many, _ = first_losses(tmp_path / "many", False, 80)
    for name in ("mlp-16x16-tanh-s0", "mlp-32x32-r4-tanh-s0", "nested-16x16-w16-tanh-s0"):
        assert few[name] < 0.5 * many[name], f"{name}: a quarter of the steps, half the mean divergence"
    assert recorded["inherit"] == "teacher"
    assert all(recorded["kl"][name] < 0.1 for name in ("mlp-16x16-tanh-s0", "mlp-32x32-r4-tanh-s0"))


@pytest.mark.parametrize("loss", ["q_kl", "kd", "bellman", "q_mse"])
def test_inherited_action_values_are_in_the_unit_of_the_loss(loss, tmp_path):
    """A student of the teacher's size begins as the teacher, so any loss begins where it ends."""
    teacher, options = FIXTURES / "sb3_dqn_cartpole.zip", ["imitate.inherit=teacher", f"imitate.loss={loss}"]
    short = ["imitate.rounds=1", "imitate.gradient_steps=1", "race.rounds=1"]
    here, family, _ = family_runs.imitated(tmp_path, teacher, "CartPole-v1", ["mlp:16x16"], [*options, *short])
    recorded = storage.read_json(tmp_path / "records" / "inherit.json")
    assert recorded["q_kl"]["mlp-16x16-s0"] < 1e-4
    (row,) = (r for r in storage.read_metrics(tmp_path) if r["stage"] == "imitate")
    if loss == "bellman":  # with V(s) removed its rows are advantages, which the inherited level is not
        biases = fold(family.blueprint("mlp-16x16-s0", "CartPole-v1")).layers[-1].bias
        assert np.allclose(biases, here.teacher.blueprint.layers[-1].bias, atol=0.01), "Q itself, not Q / tau"
    else:
        assert row["loss"] < 1e-4


def test_a_frozen_layer_is_the_teachers(tmp_path):
    options = ["imitate.inherit=teacher", "imitate.freeze=dense0", "imitate.rounds=2"]
    here, family, _ = family_runs.imitated(tmp_path / "run", LUNAR, ENV, ["mlp:256x256:tanh"], options)
    mine, its = fold(family.blueprint("mlp-256x256-tanh-s0", ENV)).layers, here.teacher.blueprint.layers
    order = [int(np.abs(mine[0].weight[:, [n]] - its[0].weight).max(0).argmin()) for n in range(256)]
    assert sorted(order) == list(range(256)), "each of the teacher's neurons once"
    assert np.allclose(mine[0].weight, its[0].weight[:, order], atol=1e-5)
    assert not np.allclose(mine[1].weight, its[1].weight[np.ix_(order, order)], atol=1e-3)


def test_another_runs_student_is_a_beginning_too(tmp_path, monkeypatch):
    _, family, _ = family_runs.imitated(tmp_path / "a", LUNAR, ENV, ["mlp:12x12"])
    path = tmp_path / "policy.safetensors"
    begun = fold(family.blueprint("mlp-12x12-s0", ENV))
    blueprints.save(begun, path)
    options = [f"imitate.inherit={path}", "imitate.adapt=r2", "imitate.rounds=1", "seed=5"]
    _, adapted, _ = family_runs.imitated(tmp_path / "b", LUNAR, ENV, ["mlp:12x12"], options)
    mine, its = adapted.blueprint("mlp-12x12-s0", ENV).layers[1], begun.layers[1]
    assert np.array_equal(np.sort(mine.bias), np.sort(its.bias)), "adapters leave biases as they were"
    with monkeypatch.context() as patched:
        patched.setattr(imitation, "imitate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            family_runs.imitated(tmp_path / "c", LUNAR, ENV, ["mlp:12x12"], options)
    blueprints.save(replace(begun, name="other"), path)
    with pytest.raises(InputError, match="changed since this run began"):
        family_runs.imitated(tmp_path / "c", LUNAR, ENV, ["mlp:12x12"], options)


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("text", ["nested:16x16:tanh@2", "mlp:16x16:tanh@2"])
def test_a_killed_run_continues_bit_for_bit(text, tmp_path, monkeypatch):
    options = ["imitate.inherit=teacher", "imitate.assistant=0.3", "imitate.freeze=dense1"]
    students = [text] if "nested" in text else [text, "mlp:8x8:tanh"]
    _, whole, _ = family_runs.imitated(tmp_path / "whole", LUNAR, ENV, students, options)
    with monkeypatch.context() as patched:
        family_runs.killed_after_round(1, patched)
        with pytest.raises(KeyboardInterrupt):
            family_runs.imitated(tmp_path / "parts", LUNAR, ENV, students, options)
    _, parts, _ = family_runs.imitated(tmp_path / "parts", LUNAR, ENV, students, options)
    assert [m.name for m in whole.members] == [m.name for m in parts.members]
    assert all(np.array_equal(whole.row(m.name), parts.row(m.name)) for m in whole.members)


@pytest.mark.parametrize(("students", "options", "words"), [
    ("mlp:16x16", ["imitate.inherit=teacher"], "Write it with :tanh"),
    ("mlp:300:tanh", ["imitate.inherit=teacher"], "hidden layers are 256x256"),
    ("gru:8", ["imitate.inherit=teacher"], "Allowed: linear, mlp and nested"),
    ("mlp:8", ["imitate.freeze=dense0"], "Add imitate.inherit=teacher"),
    ("mlp:8", ["imitate.adapt=r4"], "Add imitate.inherit=teacher"),
    ("mlp:8:tanh", ["imitate.inherit=teacher", "imitate.adapt=4"], "such as r4"),
    ("mlp:8:tanh", ["imitate.inherit=teacher", "imitate.adapt=r0"], "'r0' is not understood. Allowed: r and a rank from 1 to 9999"),
    ("mlp:8x8:tanh", ["imitate.inherit=teacher", "imitate.adapt=r999"], "Allowed: r1 to r3;"),
    ("mlp:8x8:tanh", ["imitate.inherit=teacher", "imitate.adapt=r4"], "makes no layer of student 'mlp:8x8:tanh' smaller"),
    ("mlp:8", ["imitate.inherit=" + "x" * 5000], "no file 'xxx"),
    ("mlp:8", ["imitate.inherit=a\0b"], "no file 'a"),
    ("mlp:8:tanh", ["imitate.inherit=teacher", "imitate.freeze=dense7"], "Allowed for it: dense0, head"),
    ("mlp:8:tanh", ["imitate.inherit=teacher", "imitate.freeze=dense0,head"], "nothing of student 'mlp:8:tanh' would be trained"),
    ("mlp:8:tanh", ["imitate.inherit=teacher", "imitate.freeze=dense0,head", "imitate.adapt=r2"], "nothing of student"),
    ("nested:8:tanh", ["imitate.inherit=teacher", "imitate.adapt=r2"], "Allowed: mlp and linear"),
    ("mlp:8", ["imitate.inherit=nowhere.safetensors"], "no file 'nowhere.safetensors'"),
    ("mlp:8:r8", [], "no dense layer becomes smaller"),
])  # fmt: skip
def test_it_is_refused_at_once(students, options, words, refused):
    refused(words, options, students.split(","))


@pytest.mark.slow
def test_nested_factorised_and_adapted_students_are_proved_and_exported(tmp_path):
    import limbeck

    for students, more in (
        (["nested:32x32@2", "mlp:32x32:r4"], []),
        (["mlp:32x32:tanh"], ["imitate.inherit=teacher", "imitate.adapt=r4"]),
    ):
        folder = tmp_path / str(len(students))
        result = limbeck.distill(LUNAR, ENV, students, folder, options=more, retain=0.9)
        found = {member.name: member for member in result.members}
        assert all(member.proof.verdict == "proved" for member in found.values()), found
        assert all((folder / "artifacts" / name / "c").is_dir() for name in found)
        if len(students) > 1:
            plain = {32: 32 * 8 + 32 + 32 * 32 + 32 + 32 * 4 + 4, 16: 16 * 8 + 16 + 16 * 16 + 16 + 16 * 4 + 4}
            for width, parameters in plain.items():
                (mine,) = [m for n, m in found.items() if f"w{width}-" in n]
                assert mine.parameters == parameters
