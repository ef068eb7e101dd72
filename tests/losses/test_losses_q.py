"""Losses on action values by hand; distributional teachers from files arrive as the mean their program states."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from limbeck import collection, teachers
from limbeck.contracts import Head, Spec
from limbeck.losses import LOSSES, choose, student_head
from limbeck.losses.bellman import bellman
from limbeck.losses.q import entropy_temperature, q_huber, q_mse
from limbeck.testing import evaluated

FIXTURES = Path(__file__).parents[1] / "fixtures"
Q3 = Head("q", (3,))


def test_centred_errors_by_hand():
    """Q = 10, 12, 17 is -3, -1, 4 about its mean, in gaps of 2: -1.5, -.5, 2; the student says 1, 1, 1."""
    labels = {"params": torch.tensor([[10.0, 12.0, 17.0]]), "gap": torch.tensor(2.0)}
    student = torch.ones(1, 3)
    assert q_mse(student, labels, Q3).item() == pytest.approx((1.5**2 + 0.5**2 + 2**2) / 3)
    assert q_huber(student, labels, Q3).item() == pytest.approx((1.0 + 0.125 + 1.5) / 3)  # |e| - 1/2 above 1


def test_the_level_of_q_does_not_count():
    rng = np.random.default_rng(0)
    q, student = (torch.from_numpy(rng.normal(size=(20, 3))) for _ in range(2))
    level = torch.from_numpy(rng.normal(size=(20, 1))) * 1e3
    for loss in (q_mse, q_huber):
        value = loss(student, {"params": q, "gap": torch.tensor(1.5)}, Q3)
        assert torch.allclose(loss(student - level, {"params": q + level, "gap": torch.tensor(1.5)}, Q3), value)


def test_forbidden_actions_do_not_move_the_mean():
    labels = {
        "params": torch.tensor([[2.0, 4.0, -1e8]]),
        "gap": torch.tensor(1.0),
        "allowed": torch.tensor([[True, True, False]]),
    }
    assert q_mse(torch.tensor([[0.0, 0.0, -1e8]]), labels, Q3).item() == pytest.approx(1.0)


def test_each_member_has_its_own_temperature():
    rows, q = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(1, 4, 3)
    tau = torch.tensor([0.5, 2.0])[:, None, None, None]
    value = LOSSES["q_kl"].fn(rows, {"params": q, "temperature": tau}, Q3)
    for k, alone in enumerate((0.5, 2.0)):
        single = LOSSES["q_kl"].fn(rows[k], {"params": q, "temperature": torch.tensor(alone)}, Q3)
        assert torch.allclose(value[k], single)


# ---------------------------------------------------------------- Bellman targets


def targets(**changed):
    labels = {"target": torch.tensor([[1.0, 2.0, 3.0, 99.0]]), "action": torch.tensor([[0, 1, 2, 0]]),
              "known": torch.tensor([[1.0, 1.0, 1.0, 0.0]])}  # fmt: skip
    return {**labels, **changed}


def test_bellman_by_hand():
    """Errors 1, -.5 and -3 of the actions that were taken: 1/2, 1/8, 5/2; the row without a target is in no mean."""
    student = torch.zeros(1, 1, 4, 3)
    student[0, 0, 0, 0], student[0, 0, 1, 1], student[0, 0, 2, 2], student[0, 0, 3, 0] = 2.0, 1.5, 0.0, -50.0
    assert bellman(student, targets(), Q3, torch.ones(1, 4)).item() == pytest.approx((0.5 + 0.125 + 2.5) / 3)
    masked = bellman(student, targets(), Q3, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    assert masked.item() == pytest.approx((0.5 + 2.5) / 2)


def test_bellman_without_any_target_is_zero_and_still():
    student = torch.randn(2, 1, 4, 3).requires_grad_()
    value = bellman(student, targets(known=torch.zeros(1, 4)), Q3, torch.ones(1, 4))
    assert value.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() == 0


def test_bellman_moves_the_action_that_was_taken_alone():
    student = torch.zeros(1, 1, 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(bellman(student, targets(), Q3, torch.ones(1, 4)).sum(), student)
    assert (gradient[0, 0] != 0).nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]


def test_regression_on_targets_improves_on_the_teacher():
    """A teacher whose Q is that of a coin toss: one step of targets, and the greedy student takes what the teacher misjudged."""
    rng = np.random.default_rng(0)
    rewards, moves, gamma = rng.normal(size=(8, 3)), rng.integers(8, size=(8, 3)), 0.9
    q = np.zeros((8, 3))
    for _ in range(300):
        q = rewards + gamma * q.mean(axis=1)[moves]
    wanted = rewards + gamma * q.max(axis=1)[moves]
    student = torch.zeros(1, 1, 24, 3, dtype=torch.float64)
    labels = {
        "target": torch.from_numpy(wanted.reshape(1, 24)),
        "action": torch.arange(24)[None] % 3,
        "known": torch.ones(1, 24),
    }
    table = torch.zeros(8, 3, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([table], 0.3)
    for _ in range(200):
        student = table.repeat_interleave(3, 0)[None, None]
        loss = bellman(student, labels, Q3, torch.ones(1, 24)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert np.abs(table.detach().numpy() - wanted).max() < 0.05
    assert (wanted.argmax(axis=1) != q.argmax(axis=1)).any()


def test_a_student_of_targets_states_action_values():
    assert student_head(["bellman"], Q3).kind == "q"
    assert student_head(["bellman", "kd"], Q3).kind == "q"
    assert student_head(["q_kl"], Q3).kind == "categorical"


# ---------------------------------------------------------------- distributional teachers


@pytest.mark.parametrize(("file", "mean"), [
    ("cleanrl_c51.cleanrl_model", lambda golden: golden["pmf"] @ np.linspace(-10, 10, 11)),
    ("contrib_qrdqn_cartpole.zip", lambda golden: golden["quantiles"].mean(axis=1)),
])  # fmt: skip
def test_distributional_teachers_label_with_their_mean(file, mean):
    """What their own program said of 200 observations, atoms or quantiles, meaned here; then stored, and imitated by q_kl."""
    env = gym.make("CartPole-v1")
    teacher = teachers.load(FIXTURES / file, Spec(env.observation_space, env.action_space, "CartPole-v1"))
    with np.load(FIXTURES / f"{file.split('.')[0]}.golden.npz") as golden:
        obs, wanted = golden["obs"], mean(golden).astype(np.float64)
        assert np.allclose(wanted, golden["q"], atol=1e-4)
    head = teacher.policy.head
    assert (head.kind, choose("auto", head)) == ("q", "q_kl")
    said = teacher.policy(obs, teacher.policy.initial_state(len(obs)), np.ones(len(obs), bool))
    columns = collection.label_columns(head, said.params, said.value)
    assert np.allclose(columns["teacher/params"], wanted - wanted.max(axis=1, keepdims=True), atol=1e-4)
    assert np.allclose(columns["teacher/value"], wanted.max(axis=1), atol=1e-4)
    labels = {"params": torch.from_numpy(columns["teacher/params"])}
    labels["temperature"] = torch.tensor(entropy_temperature(labels["params"], 0.25))
    alike = labels["params"] / labels["temperature"]
    assert evaluated(LOSSES["q_kl"], head, labels, alike).abs().max().item() < 1e-5
    assert (alike.argmax(-1).numpy() == wanted.argmax(axis=1)).mean() > 0.99  # ties within rounding
