"""Losses for teachers that state action values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from limbeck.contracts import Head, LossEntry
from limbeck.losses.shapes import check_rows, log_softmax_columns


def q_kl(student: torch.Tensor, labels: Mapping[str, torch.Tensor], head: Head) -> torch.Tensor:
    """KL(softmax(Q / tau) || softmax(student)), Rusu et al. 2015 (arXiv:1511.06295), with tau in labels["temperature"].

    student [..., A] logits, labels["params"] [B, A] Q-values up to a constant per row -> [..., B], never negative.
    The student's logits are not divided: it learns softmax(Q / tau) itself, so its greedy action is the teacher's.
    """
    teacher = check_rows(student, labels["params"])
    log_p, log_q = log_softmax_columns(teacher / labels["temperature"]), log_softmax_columns(student)
    return (log_p.exp() * (log_p - log_q)).sum(-2)


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


LOSSES = {"q_kl": LossEntry(q_kl, "point", frozenset({"q"}), ("q",), True)}
