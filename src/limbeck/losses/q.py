"""Losses for teachers that state action values.

Distributional teachers (C51, QR-DQN) arrive as the mean of their distribution, which is all that their greedy policy uses;
students learn the mean alone, so the distribution needs no loss of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, LossEntry
from limbeck.losses.shapes import centred, check_rows, log_softmax_columns, per_action

HUBER_DELTA = 1.0  # in mean gaps between a state's best and worst action


def q_kl(student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor:
    """KL(softmax(Q / tau) || softmax(student)), Rusu et al. 2015 (arXiv:1511.06295), with tau in labels["temperature"].

    student [..., A] logits, labels["params"] [B, A] Q-values up to a constant per row -> [..., B], never negative.
    The student's logits are not divided: it learns softmax(Q / tau) itself, so its greedy action is the teacher's.
    """
    teacher = check_rows(student, labels["params"])
    log_p, log_q = log_softmax_columns(teacher / labels["temperature"]), log_softmax_columns(student)
    return (log_p.exp() * (log_p - log_q)).sum(-2)


def q_mse(student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor:
    """Mean over actions of (z_S - mean z_S - (Q_T - mean Q_T) / gap)^2, Rusu et al. 2015 (arXiv:1511.06295) on centred Q.

    The row's mean is removed on both sides, over the allowed actions: the level of Q says nothing about what to do, and is
    mostly far larger than what does. In units of labels["gap"] [], the mean spread of Q, so that the student's numbers are
    of size 1. student [..., A], labels["params"] [B, A] Q-values up to a constant per row -> [..., B].

    >>> import torch
    >>> labels = {"params": torch.tensor([[99.0, 103.0]]), "gap": torch.tensor(2.0)}
    >>> q_mse(torch.tensor([[0.0, 0.0]]), labels, Head("q", (2,))).item()
    1.0
    """
    return per_action(_centred_error(student, labels).square(), labels.get("allowed"))


def q_huber(student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor:
    """The same with Huber(.; 1) in place of the square: a few states with huge gaps do not outweigh the rest."""
    error = _centred_error(student, labels)
    rows = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=HUBER_DELTA)
    return per_action(rows, labels.get("allowed"))


def _centred_error(student: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    allowed = labels.get("allowed")
    teacher = centred(check_rows(student, labels["params"]), allowed) / labels["gap"]
    return centred(student, allowed) - teacher


def entropy_temperature(q: torch.Tensor, target: float) -> float:
    """tau such that the mean entropy of softmax(Q / tau) is `target` * log A, by bisection in log space over [1e-4, 1e4].

    q [N, A], target in (0, 1). Rusu's 0.01 and QDagger's 0.1 are special cases for their scales of Q. Where every
    action is equally good the entropy cannot fall; the end of the range is returned then.

    >>> import torch
    >>> tau = entropy_temperature(torch.tensor([[0., 1.], [0., 2.]]), 0.5)
    >>> logs = functional.log_softmax(torch.tensor([[0., 1.], [0., 2.]]) / tau, -1)
    >>> round((-(logs.exp() * logs).sum(-1).mean() / torch.log(torch.tensor(2.))).item(), 3)
    0.5
    """
    low, high = -4.0, 4.0
    wide = q.double()
    goal = target * torch.log(torch.tensor(float(q.shape[-1])))
    for _ in range(60):
        middle = (low + high) / 2
        logs = functional.log_softmax(wide / 10**middle, -1)
        if -(logs.exp() * logs).sum(-1).mean() < goal:
            low = middle
        else:
            high = middle
    return float(10 ** ((low + high) / 2))


LOSSES = {
    "q_kl": LossEntry(q_kl, "point", frozenset({"q"}), ("q",), True),
    "q_mse": LossEntry(q_mse, "point", frozenset({"q", "regret"}), ("q",), True),
    "q_huber": LossEntry(q_huber, "point", frozenset({"q", "regret"}), ("q",), True),
}
