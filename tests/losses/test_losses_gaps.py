"""Gap weights by hand, and expected regret against the difference of returns of a small decision process."""

import numpy as np
import pytest
import torch

from limbeck.contracts import Head
from limbeck.losses import LOSSES
from limbeck.losses.gaps import kl_gap, kl_surrogate_gap, regret
from limbeck.testing import evaluated

TWO, Q2 = Head("categorical", (2,)), Head("q", (2,))
P, Q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.7, 0.3]]).log()
KL = 0.0257321


def gaps(*spreads):
    return torch.tensor([[0.0, -spread] for spread in spreads])


def scalar(value):
    return torch.tensor(value)


@pytest.mark.parametrize(
    ("power", "weights"), [(1.0, [0.1, 0.5, 2.0, 10.0]), (0.5, [0.1**0.5, 0.5**0.5, 2**0.5, 10**0.5])]
)
def test_gap_weights_are_clipped_and_raised(power, weights):
    """Mean gap 2: spreads 0, 1, 4 and 100 weigh 0.1, 0.5, 2 and 10."""
    labels = {"params": P.expand(4, 2), "advantage": gaps(0, 1, 4, 100), "gap": scalar(2.0), "gap_power": scalar(power)}
    value = kl_gap(Q.expand(4, 2), labels, TWO)
    assert value.tolist() == pytest.approx([KL * w for w in weights], rel=1e-5)


def test_gap_weights_on_action_values_use_their_softmax():
    labels = {
        "params": gaps(1.0),
        "advantage": gaps(1.0),
        "gap": scalar(0.5),
        "gap_power": scalar(1.0),
        "temperature": scalar(0.5),
    }
    student = torch.tensor([[0.3, 0.1]])
    assert torch.allclose(kl_gap(student, labels, Q2), 2 * LOSSES["q_kl"].fn(student, labels, Q2))


def test_surrogate_gaps_by_hand():
    """max log p - min log p: log 4 and log 16, mean log 8: weights 2/3 and 4/3."""
    teacher = torch.tensor([[0.8, 0.2], [16 / 17, 1 / 17]], dtype=torch.float64).log()
    student = torch.tensor([[0.7, 0.3], [0.7, 0.3]], dtype=torch.float64).log()
    kl = LOSSES["kl"].fn(student, {"params": teacher}, TWO)
    labels = {"params": teacher, "gap_power": scalar(1.0)}
    value = evaluated(LOSSES["kl_surrogate_gap"], TWO, labels, student)
    assert value.item() == pytest.approx((2 / 3 * kl[0] + 4 / 3 * kl[1]).item() / 2)
    assert kl_surrogate_gap.__doc__


def test_regret_by_hand_and_in_reward_units():
    labels = {"advantage": torch.tensor([[0.0, -3.0], [1.0, -1.0]]), "gap": scalar(2.5)}
    value = regret(torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), labels, TWO)
    assert (value * 2.5).tolist() == pytest.approx([0.75, 0.0])


def chain(policy, gamma, rewards, moves):
    """Q, V and the discounted state distribution (from state 0) of a policy [S, A] in a deterministic process."""
    states = len(policy)
    flow = np.zeros((states, states))
    for s in range(states):
        for a in range(policy.shape[1]):
            flow[s, moves[s, a]] += policy[s, a]
    values = np.linalg.solve(np.eye(states) - gamma * flow, (policy * rewards).sum(axis=1))
    visits = np.linalg.solve(np.eye(states) - gamma * flow.T, np.eye(states)[0]) * (1 - gamma)
    return rewards + gamma * values[moves], values, visits


@pytest.mark.parametrize("seed", range(5))
def test_regret_on_the_students_states_is_the_loss_of_return(seed):
    """Performance-difference lemma: J(pi_T) - J(pi_S) = E_{d^S}[regret] / (1 - gamma), exactly; on d^T it is another number."""
    rng = np.random.default_rng(seed)
    gamma, rewards, moves = 0.9, rng.normal(size=(6, 3)), rng.integers(6, size=(6, 3))
    taught, learned = (rng.dirichlet(np.ones(3), size=6) for _ in range(2))
    q, value, visits = chain(taught, gamma, rewards, moves)
    _, reached, mine = chain(learned, gamma, rewards, moves)
    gap = np.ptp(q, axis=1).mean()
    labels = {"advantage": torch.from_numpy(q - value[:, None]), "gap": torch.tensor(gap)}
    rows = regret(torch.from_numpy(np.log(learned)), labels, Head("categorical", (3,))).numpy() * gap
    assert mine @ rows / (1 - gamma) == pytest.approx(value[0] - reached[0], rel=1e-9)
    assert visits @ rows / (1 - gamma) != pytest.approx(value[0] - reached[0], rel=1e-3)


def test_descending_regret_finds_the_better_action_where_nll_copies_the_teacher():
    """The critic prefers another action than the teacher's own: regret follows the critic."""
    labels = {"params": torch.tensor([[2.0, 0.0]]), "advantage": torch.tensor([[-0.5, 1.0]]), "gap": scalar(1.5)}
    student = torch.zeros(1, 2).requires_grad_()
    (towards,) = torch.autograd.grad(regret(student, labels, TWO).sum(), student)
    (copies,) = torch.autograd.grad(LOSSES["nll"].fn(student, labels, TWO).sum(), student)
    assert towards[0, 1] < 0 < copies[0, 1]
