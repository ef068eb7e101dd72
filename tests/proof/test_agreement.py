import math

import gymnasium as gym
import numpy as np
import pytest
from proof_cases import Ramp, Rule, labelled_task, network, right, wrong_above

from limbeck import rollout, seeding, tasks
from limbeck.contracts import Head, PolicyOutput
from limbeck.distributions import act
from limbeck.proof.agreement import compare, fidelity

SEEDS = [seeding.episode_seed(0, "fidelity", i) for i in range(8)]
LOGITS = Head("categorical", (2,), start=(0,))
Q = Head("q", (3,), start=(5,))


def rows(*values):
    return np.array(values, np.float32)


def measures(teacher_head, labels, student_head, said):
    return compare(teacher_head, labels, act(teacher_head, labels), student_head, said, act(student_head, said))


def test_agreement_and_kl_of_two_coins():
    teacher, student = (
        rows([math.log(0.8), math.log(0.2)], [0.0, 1.0]),
        rows([math.log(0.5), math.log(0.5)], [0.0, 1.0]),
    )
    found = measures(LOGITS, teacher, LOGITS, student)
    assert found["agreement"].tolist() == [1.0, 1.0]  # the student's tie goes to the first action, as the teacher's
    assert found["kl"] == pytest.approx([0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.0], abs=1e-6)
    assert "regret" not in found


def test_regret_is_the_gap_of_the_teacher_s_own_q():
    teacher, student = rows([1000.0, 1000.5, 3.0], [0.0, 0.0, 7.0]), rows([9.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    found = measures(Q, teacher, Head("categorical", (3,), start=(5,)), student)
    assert found["regret"] == pytest.approx([0.5, 0.0])
    assert found["agreement"].tolist() == [0.0, 1.0]
    assert "kl" not in found  # Q-values describe no distribution


def test_several_choices_agree_only_if_all_do():
    head = Head("multicategorical", (2, 2), start=(0, 0), shape=(2,))
    found = measures(head, rows([1, 0, 1, 0], [1, 0, 1, 0]), head, rows([1, 0, 1, 0], [1, 0, 0, 1]))
    assert found["agreement"].tolist() == [1.0, 0.0]


def test_continuous_actions_differ_in_units_of_their_range():
    head = Head("deterministic", (2,), (-2.0, -1.0), (2.0, 1.0), shape=(2,))
    found = measures(head, rows([1.0, 0.0], [9.0, 0.0]), head, rows([0.0, 1.0], [2.0, 0.0]))
    assert found["action_difference"] == pytest.approx([(0.25 + 0.5) / 2, 0.0])  # executed: 9 was clipped to 2
    assert set(found) == {"action_difference"}


def test_unbounded_actions_differ_in_their_own_units():
    head = Head("deterministic", (1,), (-math.inf,), (math.inf,), shape=(1,))
    assert measures(head, rows([3.0]), head, rows([1.0]))["action_difference"] == pytest.approx([2.0])


def test_gaussian_kl():
    head = Head("gaussian", (1,), (-9.0,), (9.0,), shape=(1,))
    found = measures(head, rows([1.0, 0.0]), head, rows([0.0, 0.0]))
    assert found["kl"] == pytest.approx([0.5])
    assert found["action_difference"] == pytest.approx([1 / 18])


def test_a_policy_agrees_with_itself():
    task = labelled_task()
    found = fidelity(right(task), right(task), task, SEEDS)
    assert found.values == {"agreement": 1.0, "kl": 0.0}
    assert found.env_steps == found.states == 8


def test_agreement_is_the_share_of_visited_states():
    task, seeds = labelled_task(), [seeding.episode_seed(0, "fidelity", i) for i in range(400)]
    student = wrong_above(task, 0.8)
    played = rollout.play(student, task, seeds)
    assert fidelity(student, right(task), task, seeds).values["agreement"] == pytest.approx(played.returns.mean())


class Counter:
    """A recurrent teacher: its action is the number of steps since its episode began, capped at 2."""

    def __init__(self, spec):
        self.spec, self.head = spec, Head("categorical", (3,), start=(0,))

    def initial_state(self, batch):
        return {"age": np.full(batch, -7)}

    def __call__(self, obs, state, first):
        age = np.where(first, 0, state["age"] + 1)
        return PolicyOutput(np.eye(3, dtype=np.float32)[np.clip(age, 0, 2)], {"age": age})


def test_the_teacher_s_memory_follows_the_student_s_episodes():
    task = tasks.resolve(Ramp)
    reads_the_step = Rule(task.spec, lambda x: np.eye(3)[np.clip(x[:, 1].astype(int), 0, 2)])
    seeds = [seeding.episode_seed(0, "fidelity", i) for i in range(37)]  # more episodes than slots
    found = fidelity(reads_the_step, Counter(task.spec), task, seeds)
    assert found.values["agreement"] == 1.0
    assert found.states == 37 * 5


def test_continuous_environment():
    task = tasks.resolve(lambda: gym.make("Pendulum-v1", max_episode_steps=20))
    found = fidelity(network(task, seed=1), network(task, seed=2), task, SEEDS)
    assert 0 < found.values["action_difference"] < 1
    assert found.states == 160
