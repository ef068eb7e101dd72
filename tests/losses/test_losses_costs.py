"""The entropy-regularised form against the exact gradient of its objective, over all episodes of a small decision process."""

import itertools

import numpy as np
import pytest
import torch

from limbeck.contracts import Head
from limbeck.losses.costs import CLIP, cost, entropy_regularised
from limbeck.losses.policy import kl_forward

THREE = Head("categorical", (3,))
STATES, STEPS = 4, 3
NEXT = np.random.default_rng(1).integers(STATES, size=(STATES, 3))
STOP = np.random.default_rng(4).random((STATES, 3))  # probability that an action ends the episode
TEACHER = torch.from_numpy(np.random.default_rng(2).normal(size=(STATES, 3)) * 2)


def episodes(stop=None):
    """(the environment's part of the probability, states visited, actions) of every episode from state 0. `stop` [S, A]:
    the probability that an episode ends with an action; None: all last STEPS."""
    for length in range(1, STEPS + 1):
        for actions in itertools.product(range(3), repeat=length):
            state, states, chance = 0, [], 1.0
            for t, action in enumerate(actions):
                states.append(state)
                ends = 0.0 if stop is None else stop[state, action]
                if t < STEPS - 1:  # the last step ends it in any case
                    chance *= ends if t == length - 1 else 1 - ends
                state = NEXT[state, action]
            if chance:
                yield chance, states, list(actions)


def exact_gradient(theta, gamma, baseline=0.0, stop=None):
    """Of J_b = E[sum gamma^t (c(s_t) - b)], by differentiating the sum over all episodes, probabilities included."""
    theta = theta.clone().requires_grad_()
    logs, costs = theta.log_softmax(-1), -(theta.softmax(-1) * TEACHER.log_softmax(-1)).sum(-1)
    total = sum(
        chance * logs[states, actions].sum().exp() * sum(gamma**t * (costs[s] - baseline) for t, s in enumerate(states))
        for chance, states, actions in episodes(stop)
    )
    return torch.autograd.grad(total, theta)[0]


def surrogate_gradient(theta, gamma, loss, baseline=0.0, behaviour=None, stop=None):
    """The same by the loss on rows: what was said, under whom, and the costs to go as labels."""
    theta = theta.clone().requires_grad_()
    played = theta.detach() if behaviour is None else behaviour
    logs = played.log_softmax(-1)
    costs = cost(theta.detach(), {"params": TEACHER}, THREE)
    total = torch.zeros((), dtype=torch.float64)
    for chance, states, actions in episodes(stop):
        steps = len(states)
        later = [
            sum(gamma ** (k - t) * (costs[states[k]] - baseline) for k in range(t + 1, steps)) for t in range(steps)
        ]
        labels = {
            "params": TEACHER[states],
            "said": torch.tensor(actions),
            "log_behaviour": logs[states, actions],
            "to_go": torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in later]),
        }
        rows = loss(theta[states], labels, THREE)
        weights = torch.tensor([gamma**t for t in range(steps)], dtype=torch.float64)
        total = total + chance * logs[states, actions].sum().exp() * (weights * rows).sum()
    return torch.autograd.grad(total, theta)[0]


THETA = torch.from_numpy(np.random.default_rng(3).normal(size=(STATES, 3)))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_its_gradient_is_that_of_the_objective(gamma):
    assert torch.allclose(
        surrogate_gradient(THETA, gamma, entropy_regularised), exact_gradient(THETA, gamma), atol=1e-12
    )


def test_in_episodes_of_one_length_the_mean_cost_changes_nothing():
    with_one = surrogate_gradient(THETA, 0.9, entropy_regularised, baseline=1.7)
    assert torch.allclose(with_one, exact_gradient(THETA, 0.9), atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_where_actions_end_episodes_its_gradient_is_that_of_the_excess_cost(gamma, baseline):
    """Episodes end at random, with a probability that depends on the action: b is part of the objective, no baseline."""
    chances = sum(c * THETA.log_softmax(-1)[s, a].sum().exp() for c, s, a in episodes(STOP))
    assert chances.item() == pytest.approx(1.0)
    mine = surrogate_gradient(THETA, gamma, entropy_regularised, baseline, stop=STOP)
    assert torch.allclose(mine, exact_gradient(THETA, gamma, baseline, STOP), atol=1e-12)
    plain = exact_gradient(THETA, gamma, stop=STOP)
    assert torch.allclose(mine, plain, atol=1e-12) == (baseline == 0.0)


def test_with_equal_costs_only_the_uncentred_form_learns_to_end_its_episodes():
    """Where every state costs the same nothing is to be gained; without b ending the episode seems to be."""
    theta, teacher = torch.zeros(STATES, 3, dtype=torch.float64), torch.zeros(STATES, 3, dtype=torch.float64)
    each = cost(theta, {"params": teacher}, THREE)

    def second_part(b):
        free = theta.clone().requires_grad_()
        total = sum(
            chance * (1 / 3) ** len(actions) * free.log_softmax(-1)[s, a] * (each[states[t + 1 :]] - b).sum()
            for chance, states, actions in episodes(STOP)
            for t, (s, a) in enumerate(zip(states, actions, strict=True))
        )
        return torch.autograd.grad(total, free)[0]

    assert second_part(each.mean()).abs().max() < 1e-12
    uncentred = second_part(0.0)[0]
    assert uncentred.abs().max() > 0.05
    assert uncentred.argmin() == STOP[0].argmax(), "its cost falls fastest along the action that ends it soonest"


def test_without_the_second_part_it_is_another_direction():
    """What student-driven imitation leaves out: the gradient through the states that are visited."""

    def immediate(student, labels, head):
        return cost(student, labels, head)

    difference = surrogate_gradient(THETA, 1.0, immediate) - exact_gradient(THETA, 1.0)
    assert difference.abs().max() > 0.05


def test_the_usual_loss_is_no_gradient_at_all():
    """A gradient field has a symmetric Jacobian (Czarnecki et al. 2019, section 4): that of the exact form is, KL's is not."""

    def field(theta, form):
        if form == "exact":
            return exact_gradient_graph(theta)
        logs, kl = theta.log_softmax(-1), kl_forward(theta, {"params": TEACHER}, THREE)
        visits = torch.zeros(STATES, dtype=torch.float64)
        for _, states, actions in episodes():
            weight = logs[states, actions].sum().exp()
            visits = visits + weight * torch.bincount(torch.tensor(states), minlength=STATES)
        slope = theta.softmax(-1) - TEACHER.softmax(-1)  # grad KL(p || q) in the student's logits
        assert kl.shape == (STATES,)
        return visits[:, None] * slope

    def exact_gradient_graph(theta):
        logs, costs = theta.log_softmax(-1), -(theta.softmax(-1) * TEACHER.log_softmax(-1)).sum(-1)
        total = sum(logs[s, a].sum().exp() * costs[s].sum() for _, s, a in episodes())
        return torch.autograd.grad(total, theta, create_graph=True)[0]

    asymmetry = {}
    for form in ("exact", "kl"):
        theta = THETA.clone().requires_grad_()
        jacobian = torch.autograd.functional.jacobian(lambda x: field(x, form), theta).reshape(12, 12)  # noqa: B023
        asymmetry[form] = (jacobian - jacobian.T).abs().max().item()
    assert asymmetry["exact"] < 1e-10
    assert asymmetry["kl"] > 0.05


def test_rows_stop_pushing_once_the_student_has_left_the_policy_that_played():
    """PPO's bound, for costs: at twice the probability, a bad action is still pushed down and a good one no longer up."""
    student = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    log_q = student.detach().log_softmax(-1)[0, 0]
    labels = {"params": student.detach(), "said": torch.tensor([0]), "log_behaviour": (log_q - np.log(2))[None]}

    def pull(to_go):
        given = {**labels, "to_go": torch.tensor([to_go], dtype=torch.float64)}
        rows = entropy_regularised(student, given, THREE) - cost(student, given, THREE)
        return rows.item(), torch.autograd.grad(rows.sum(), student)[0][0, 0].item()

    assert pull(-1.0) == (pytest.approx(-1 - CLIP), 0.0)
    value, slope = pull(1.0)
    assert value == pytest.approx(2.0)
    assert slope > 0


def test_members_have_their_own_futures():
    """to_go [K, T, B]: 0 where another member drove, so that row teaches the immediate cost alone."""
    student = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    to_go = torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]]], dtype=torch.float64)
    labels = {
        "params": TEACHER[:3][None],
        "said": torch.tensor([[0, 1, 2]]),
        "log_behaviour": torch.full((1, 3), -1.0),
        "to_go": to_go,
    }
    rows = entropy_regularised(student, labels, THREE)
    immediate = cost(student, labels, THREE)
    assert rows.shape == (2, 1, 3)
    assert torch.equal(rows[0, 0, 2], immediate[0, 0, 2])
    assert torch.equal(rows[1, 0, :2], immediate[1, 0, :2])
    assert not torch.equal(rows[0, 0, 0], immediate[0, 0, 0])


def test_action_values_are_read_at_their_temperature():
    labels = {"params": TEACHER, "temperature": torch.tensor(2.0)}
    assert torch.allclose(cost(THETA, labels, Head("q", (3,))), cost(THETA, {"params": TEACHER / 2}, THREE))
