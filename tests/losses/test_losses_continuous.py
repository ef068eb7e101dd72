"""Losses on continuous actions against torch.distributions, and the critic's expansion against a critic."""

import math

import numpy as np
import pytest
import torch

from limbeck import distributions
from limbeck.contracts import Head
from limbeck.losses import LOSSES
from limbeck.losses.critic import PULL, critic_guided
from limbeck.losses.gaussian import executed, executed_huber, gaussian_nll

GAUSSIAN = Head("gaussian", (3,), (-1.0, -2.0, -math.inf), (1.0, 3.0, math.inf), shape=(3,))
TANH = Head("tanh", (2,), (-1.0, -2.0), (1.0, 4.0), shape=(2,))
SQUASHED = Head("squashed", (2,), (-1.0, -2.0), (1.0, 4.0), shape=(2,))


def rows(width, seed=0, count=40):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(count, width)).clip(-1.9, 1.9)) for _ in range(2)]


def test_nll_matches_torch_distributions():
    teacher, student = rows(6)
    mean, log_std = student.chunk(2, -1)
    wanted = -torch.distributions.Normal(mean, log_std.exp()).log_prob(teacher[:, :3]).sum(-1)
    assert torch.allclose(gaussian_nll(student, {"params": teacher}, GAUSSIAN), wanted)


def test_nll_of_a_squashed_gaussian_differs_by_what_the_student_cannot_change():
    """-log density of the executed action; the rest is log |da / du| at the teacher's action, the same for any student."""
    teacher, one = rows(4)
    other = rows(4, seed=1)[0]

    def density(student):
        mean, log_std = student.chunk(2, -1)
        base = torch.distributions.Normal(mean, log_std.exp())
        squash = [torch.distributions.TanhTransform()]
        law = torch.distributions.TransformedDistribution(base, squash)
        return -law.log_prob(torch.tanh(teacher[:, :2])).sum(-1)

    ours = [gaussian_nll(x, {"params": teacher}, SQUASHED) for x in (one, other)]
    assert torch.allclose(ours[0] - ours[1], density(one) - density(other), atol=1e-8)


def test_nll_does_not_reward_an_ever_smaller_spread():
    labels = {"params": torch.zeros(1, 6)}
    values = [gaussian_nll(torch.tensor([[0.0] * 3 + [s] * 3]), labels, GAUSSIAN).item() for s in (-5.0, -9.0, -20.0)]
    assert values[0] == values[1] == values[2] == pytest.approx(3 * (-5 + math.log(2 * math.pi) / 2))


def test_executed_is_what_the_environment_receives():
    for head, width in ((GAUSSIAN, 3), (TANH, 2), (SQUASHED, 2)):
        said = rows(width)[0].float() * 2
        wanted = distributions.execute(head, said.numpy())
        assert np.allclose(executed(said, head).numpy(), wanted, atol=1e-6)


def test_executed_huber_reads_the_means_of_a_student_that_states_spreads():
    teacher, student = rows(6)
    labels = {"params": teacher}
    assert torch.equal(executed_huber(student, labels, GAUSSIAN), executed_huber(student[:, :3], labels, GAUSSIAN))


def quadratic(n, seed=0):
    """Q(s, a) = -sum_i k_i (a_i - best_i)^2 / 2 with its gradient and curvature at an action."""
    rng = np.random.default_rng(seed)
    stiff, best = torch.from_numpy(rng.uniform(1, 3, n)), torch.from_numpy(rng.uniform(-0.5, 0.5, n))
    return lambda a: (-(stiff * (a - best) ** 2) / 2).sum(-1), lambda a: -stiff * (a - best), -stiff, best


def critic_labels(teacher, head, scale=0.5, n=2):
    _, slope, curvature, _ = quadratic(n)
    at = executed(teacher[:, :n], head)
    return {"params": teacher, "critic_grad": slope(at), "critic_hess": curvature.expand_as(at), "critic_scale": torch.tensor(scale, dtype=torch.float64)}  # fmt: skip


@pytest.mark.parametrize("head", [TANH, Head("deterministic", (2,), (-1.0, -2.0), (1.0, 4.0))])
def test_the_expansion_is_the_critic_where_that_is_quadratic(head):
    """critic_guided - executed_huber = -2.5 scale (Q(s, a_S) - Q(s, a_T)), exactly."""
    teacher, student = rows(2)
    labels = critic_labels(teacher, head)
    q = quadratic(2)[0]
    gain = q(executed(student, head)) - q(executed(teacher, head))
    value = critic_guided(student, labels, head) - executed_huber(student, labels, head)
    assert torch.allclose(value, -PULL * 0.5 * gain)


def test_following_the_critic_beats_copying_the_teacher():
    head = Head("deterministic", (2,), (-1.0, -2.0), (1.0, 4.0))
    teacher = torch.tensor([[0.8, -0.8]], dtype=torch.float64)
    q, best, labels = quadratic(2)[0], quadratic(2)[3], critic_labels(teacher, head, scale=50.0)
    found = {}
    for name in ("executed_huber", "critic_guided"):
        student = teacher.clone().requires_grad_()
        optimiser = torch.optim.Adam([student], 0.02)
        for _ in range(500):
            optimiser.zero_grad()
            LOSSES[name].fn(student, labels, head).sum().backward()
            optimiser.step()
        found[name] = student.detach()
    assert torch.allclose(found["executed_huber"], teacher, atol=1e-3)
    assert q(found["critic_guided"]).item() > q(teacher).item()
    assert torch.allclose(found["critic_guided"][0], best, atol=0.05)


def test_at_the_teachers_action_only_the_gradient_speaks():
    teacher = rows(2)[0]
    labels = critic_labels(teacher, TANH)
    student = teacher.clone().requires_grad_()
    value = critic_guided(student, labels, TANH)
    assert value.abs().max().item() < 1e-6
    (slope,) = torch.autograd.grad(value.sum(), student)
    moved = 1 - torch.tanh(teacher) ** 2  # d executed / d said, times half the range
    wanted = -PULL * 0.5 * labels["critic_grad"] * moved * torch.tensor([1.0, 3.0])
    assert torch.allclose(slope, wanted, atol=1e-6)
