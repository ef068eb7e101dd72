"""Losses on discrete distributions against closed forms and torch.distributions."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from limbeck.contracts import Head
from limbeck.losses import LOSSES
from limbeck.losses.policy import js, kl_reverse, nll

TWO, MANY, FLAGS = Head("categorical", (2,)), Head("multicategorical", (3, 2)), Head("bernoulli", (4,))
P, Q = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log(), torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()


def rows(width, seed=0, count=30):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(count, width)) * 2) for _ in range(2)]


def test_reverse_kl_of_the_worked_example():
    assert kl_reverse(Q, {"params": P}, TWO).item() == pytest.approx(0.7 * math.log(7 / 8) + 0.3 * math.log(3 / 2))
    teacher, student = rows(6)
    wanted = kl_divergence(Categorical(logits=student), Categorical(logits=teacher))
    assert torch.allclose(kl_reverse(student, {"params": teacher}, Head("categorical", (6,))), wanted)


def test_reverse_kl_of_several_choices_and_flags():
    teacher, student = rows(5)
    parts = [
        kl_divergence(Categorical(logits=student[:, a:b]), Categorical(logits=teacher[:, a:b]))
        for a, b in ((0, 3), (3, 5))
    ]
    assert torch.allclose(kl_reverse(student, {"params": teacher}, MANY), sum(parts))
    teacher, student = rows(4)
    wanted = kl_divergence(Bernoulli(logits=student), Bernoulli(logits=teacher)).sum(-1)
    assert torch.allclose(kl_reverse(student, {"params": teacher}, FLAGS), wanted)


def test_reverse_kl_is_dead_where_the_student_is_surely_wrong():
    """Forward KL pulls with force 1 there; that is why reverse KL is no loss to begin with."""
    student = torch.tensor([[-20.0, 20.0]], dtype=torch.float64).requires_grad_()
    labels = {"params": torch.tensor([[5.0, -5.0]], dtype=torch.float64)}
    pull = {
        name: torch.autograd.grad(LOSSES[name].fn(student, labels, TWO).sum(), student)[0].abs().max().item()
        for name in ("kl", "kl_reverse")
    }
    assert pull["kl"] > 0.99
    assert pull["kl_reverse"] < 1e-10


def test_js_is_what_hand_and_definition_say():
    """beta = 1/2 at (.8, .2), (.7, .3): m = (.75, .25)."""
    halves = [
        0.8 * math.log(0.8 / 0.75) + 0.2 * math.log(0.2 / 0.25),
        0.7 * math.log(0.7 / 0.75) + 0.3 * math.log(0.3 / 0.25),
    ]
    labels = {"params": P, "beta": torch.tensor(0.5)}
    assert js(Q, labels, TWO).item() == pytest.approx(sum(halves) / 2)


def test_js_at_its_ends_is_forward_and_reverse_kl_and_in_between_at_most_log_2():
    teacher, student = rows(5)
    head = Head("categorical", (5,))
    for beta, name in ((0.0, "kl"), (1.0, "kl_reverse")):
        value = js(student, {"params": teacher, "beta": torch.tensor(beta)}, head)
        assert torch.equal(value, LOSSES[name].fn(student, {"params": teacher}, head))
    apart = torch.tensor([[50.0, -50.0]]), {"params": torch.tensor([[-50.0, 50.0]]), "beta": torch.tensor(0.5)}
    assert js(*apart, TWO).item() == pytest.approx(math.log(2))
    small = js(student, {"params": teacher, "beta": torch.tensor(1e-6, dtype=torch.float64)}, head) / 1e-6
    assert torch.allclose(small, LOSSES["kl"].fn(student, {"params": teacher}, head), rtol=1e-3)


def test_nll_is_the_cross_entropy_with_the_greedy_action():
    teacher, student = rows(5)
    wanted = torch.nn.functional.cross_entropy(student, teacher.argmax(-1), reduction="none")
    assert torch.allclose(nll(student, {"params": teacher}, Head("q", (5,))), wanted)
    parts = [
        torch.nn.functional.cross_entropy(student[:, a:b], teacher[:, a:b].argmax(-1), reduction="none")
        for a, b in ((0, 3), (3, 5))
    ]
    assert torch.allclose(nll(student, {"params": teacher}, MANY), sum(parts))
    teacher, student = rows(4)
    wanted = -Bernoulli(logits=student).log_prob((teacher > 0).double()).sum(-1)
    assert torch.allclose(nll(student, {"params": teacher}, FLAGS), wanted)


def test_forbidden_actions_count_in_no_divergence():
    """Every loss on three allowed actions of five says what it says on those three alone."""
    from limbeck import objective
    from limbeck.contracts import Batch

    teacher, student = (x.reshape(1, 30, 5) for x in rows(5))
    advantage = teacher - teacher.amax(-1, keepdim=True)
    allowed = torch.tensor([True, False, True, True, False]).expand(1, 30, 5)
    labels = {"params": teacher, "advantage": advantage, "allowed": allowed}
    few = {"params": teacher[..., [0, 2, 3]], "advantage": advantage[..., [0, 2, 3]]}
    scalars = {"gap": 2.0, "gap_power": 1.0, "beta": 0.3, "temperature": 1.3, "dkd_beta": 2.0}
    scalars = {k: torch.tensor(v, dtype=torch.float64) for k, v in scalars.items()}
    index = torch.where(teacher[..., [0, 2, 3]].argmax(-1) == 0, 0, 2)
    said = {"said": index, "log_behaviour": torch.full((1, 30), -1.0), "to_go": torch.ones(1, 30)}
    said_few = {**said, "said": torch.where(index == 0, 0, 1)}
    for name, entry in LOSSES.items():
        for kind in {"categorical", "q"} & set(entry.heads):
            if entry.reads == "hidden" or name in ("cross_entropy", "bellman"):
                continue
            values = [
                objective.evaluate(
                    (objective.Term(name, 1.0),), rows_[None], Batch("t", rows_, None, None, {**given, **scalars}), Head(kind, (size,))
                ).item()
                for rows_, given, size in ((student, {**labels, **said}, 5), (student[..., [0, 2, 3]], {**few, **said_few}, 3))
            ]  # fmt: skip
            assert values[0] == pytest.approx(values[1], rel=1e-6), (name, kind)
