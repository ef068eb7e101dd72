"""Schedules of driving, shares of lanes, and the threshold of the choice."""

from pathlib import Path
from types import SimpleNamespace

import family_runs
import numpy as np
import pytest

from limbeck import objective, settings, tasks, teachers
from limbeck.collection import shared
from limbeck.errors import InputError
from limbeck.settings import CollectSettings
from limbeck.stages import driving, opening, refusals
from limbeck.stages.scene import Progress


def test_the_three_schedules_of_beta():
    linear = CollectSettings(beta_rounds=4)
    assert [driving.beta(linear, n) for n in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    exponential = CollectSettings(beta_schedule="exponential", beta=0.7)
    assert [driving.beta(exponential, n) for n in range(4)] == pytest.approx([1.0, 0.7, 0.49, 0.343])
    assert driving.beta(CollectSettings(beta_schedule="constant", beta=0.3), 9) == 0.3


@pytest.mark.parametrize("lmbda", [0.0, 0.3, 0.5, 1.0])
def test_lanes_are_shared_out_evenly_over_lanes_and_rounds(lmbda):
    whole = np.concatenate([shared(3, number, lmbda)[0] for number in range(40)])
    assert whole.sum() == round(120 * lmbda)
    assert all(abs(whole[:n].sum() - n * lmbda) < 1 for n in range(1, 120))


@pytest.mark.parametrize(("student", "driver"), [(0.5, "student"), (0.15, "teacher")])
def test_the_threshold_decides(student, driver):
    said = []
    run = SimpleNamespace(record=lambda name, compute: compute(), tell=lambda stage, text: said.append(text))
    losses = {"a": (student, 0.1), "b": (2 * student, 0.2)}
    done, rows = driving.decide(SimpleNamespace(run=run), Progress(round=1), losses, "executed_huber")
    assert done.driver == rows[0]["driver"] == driver
    assert rows[0]["ratio"] == pytest.approx(student / 0.1, rel=1e-4)
    assert "executed_huber (no KL for this head)" in said[-1]


FIXTURES = Path(__file__).parent.parent / "fixtures"
TASK = tasks.resolve("CartPole-v1")


def planned(number, loss="auto", done=Progress(), **values):
    """The plan of a round of a Q teacher."""
    recipe = settings.recipe_from(
        {"teacher": "t", "env": "CartPole-v1", "imitate": {"loss": loss, "rounds": 3}, **values}
    )
    policy = SimpleNamespace(head=teachers.load(FIXTURES / "sb3_dqn_cartpole.zip", TASK.spec).policy.head)
    here = SimpleNamespace(
        run=SimpleNamespace(recipe=recipe), teacher=SimpleNamespace(policy=policy), teacher_steps=100.0, mode="greedy"
    )
    return driving.plan(here, done, number, 3)


def test_offline_stays_within_its_budget():
    offline = {"collect": {"driver": "offline", "teacher_rounds": 3, "steps": 400}, "env_steps": 1000}
    assert [planned(number, **offline).steps for number in range(3)] == [333, 333, 333]


def test_offline_is_refused_with_recordings(tmp_path):
    path, ends = tmp_path / "bare.npz", np.arange(40) % 8 == 7
    np.savez(path, observations=np.zeros((40, 4), np.float32), actions=np.zeros(40, np.int64), terminals=ends)
    values = {"teacher": str(FIXTURES / "sb3_dqn_cartpole.zip"), "data": str(path), "collect": {"driver": "offline"}}
    recipe = settings.recipe_from(values)
    task, teacher = opening.open_both(recipe)
    with pytest.raises(InputError, match="offline is about who plays, and with recordings nobody does"):
        driving.refuse(recipe, task, teacher, objective.parse("auto", teacher.policy.head))


def test_a_blend_knows_the_unit_of_its_students():
    done = Progress(temperature=0.25, gap=8.0)
    assert [planned(1, loss, done).unit for loss in ("auto", "kd", "bellman", "q_huber")] == [0.25, 1.0, 1.0, 8.0]


def test_action_values_are_not_drawn_from():
    teacher = teachers.load(FIXTURES / "sb3_dqn_cartpole.zip", TASK.spec)
    for loss, refused in (("bellman", True), ("q_kl", False)):
        values = {
            "teacher": "t",
            "env": "CartPole-v1",
            "imitate": {"loss": loss},
            "collect": {"student_mode": "sampled"},
        }
        recipe = settings.recipe_from(values)
        if refused:
            with pytest.raises(InputError, match="state action values"):
                refusals.refuse(recipe, TASK, teacher)
        else:
            refusals.refuse(recipe, TASK, teacher)


def test_a_blend_of_students_in_mean_gaps_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    """The mean gap is known after a round's labels, and the next round's blend reads students by it."""
    options = ["collect.driver=trb", "imitate.loss=q_huber", "collect.steps=200", "imitate.assistant=0.3"]
    run = (FIXTURES / "sb3_dqn_cartpole.zip", "CartPole-v1", ["mlp:8", "mlp:4"], options)
    _, whole, done = family_runs.imitated(tmp_path / "whole", *run)
    with monkeypatch.context() as patched:
        family_runs.killed_after_round(1, patched)
        with pytest.raises(KeyboardInterrupt):
            family_runs.imitated(tmp_path / "parts", *run)
    _, parts, again = family_runs.imitated(tmp_path / "parts", *run)
    assert again.gap == done.gap
    assert done.gap not in (1.0, done.temperature)
    assert all(np.array_equal(whole.row(m.name), parts.row(m.name)) for m in whole.members)


def test_students_of_bellman_targets_blend_and_assist(tmp_path):
    options = ["collect.driver=trb", "imitate.loss=bellman + kd", "collect.steps=200", "imitate.assistant=0.3"]
    teacher, students = FIXTURES / "sb3_dqn_cartpole.zip", ["mlp:8", "mlp:4"]
    _, family, done = family_runs.imitated(tmp_path / "run", teacher, "CartPole-v1", students, options)
    assert done.round == 4
    assert all(np.isfinite(family.row(member.name)).all() for member in family.members)
